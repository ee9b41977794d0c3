// Package board fixes the ports and interrupts of the devices that every small PC has,
// and describes the machine in ACPI tables.
package board

import (
	"fmt"

	"github.com/gocolo/lockstep/kvm/internal/acpi"
	"github.com/gocolo/lockstep/kvm/internal/bzimage"
	"github.com/gocolo/lockstep/kvm/internal/device"
)

// Ports and interrupts of the board's own devices.
const (
	PortSerial  = 0x3f8
	PortTimer   = 0x608 // of ACPI
	PortReset   = 0xcf9
	PortControl = 0x6100 // of ACPI

	IRQSerial = 4
	IRQPower  = 11
)

const resetWith = 6

// Tables makes the ACPI tables of a board with so many vCPUs and these devices on its PCI
// bus, as they must stand at bzimage.Tables.
func Tables(vcpus int, pci []acpi.PCIInterrupt) ([]byte, error) {
	tables, err := acpi.Tables(acpi.Machine{
		VCPUs:     vcpus,
		PMEvent:   PortControl,
		PMControl: PortControl + 4,
		PMTimer:   PortTimer,
		SCI:       IRQPower,
		Reset:     PortReset,
		ResetWith: resetWith,
		Century:   device.Century,
		SleepOff:  device.SleepOff,
		PCI:       pci,
	}, bzimage.Tables)
	if err == nil && len(tables) > bzimage.Kernel-bzimage.Tables {
		err = fmt.Errorf("acpi: %d bytes of tables", len(tables))
	}
	return tables, err
}
