//go:build linux && amd64

package gokvmhost

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/kvm/gokvmhost/internal/acpi"
	"github.com/gocolo/lockstep/kvm/gokvmhost/internal/device"
)

// LoadLinux prepares a machine to boot a Linux bzImage, with the machine's own
// LoadLinux, whose vCPUs it leaves at the kernel's entry; call it once, before Run,
// and before or after Attach. Beyond that it checks that everything fits, places
// the initial RAM disk (nil: none) behind the kernel wherever there is room, and
// adds the ACPI tables without which a guest of gokvm's has one CPU and no
// interrupt controllers but the oldest. A guest that is not to use them has
// "acpi=off" on its command line.
//
// A machine whose state comes from another one needs no kernel, unless devices were
// added to it with AddDevice: gokvm connects those here.
func LoadLinux(m *Machine, kernel, initrd io.ReaderAt, cmdline string) error {
	p, err := partsOf(m)
	if err != nil {
		return err
	}
	has, err := adopt(p.pci)
	if err != nil {
		return err
	}
	image, err := parseKernel(kernel)
	if err != nil {
		return err
	}
	at, err := image.fit(uint64(len(p.memory)), cmdline)
	if err != nil {
		return err
	}
	tables, err := acpi.Tables(acpi.Machine{
		VCPUs:     len(m.RunData()),
		PMEvent:   portControl,
		PMControl: portControl + 4,
		PMTimer:   portTimer,
		SCI:       irqPower,
		Reset:     portReset,
		ResetWith: 6,
		Century:   device.Century,
		SleepOff:  device.SleepOff,
		PCI:       interrupts(has.plan()),
	}, bootTables)
	if err != nil {
		return fmt.Errorf("gokvmhost: %w", err)
	}
	if err := m.LoadLinux(kernel, nil, cmdline); err != nil {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	if initrd != nil {
		if err := image.placeImage(p.memory, at, initrd); err != nil {
			return err
		}
	}
	copy(p.memory[bootTables:], tables)
	binary.LittleEndian.PutUint64(p.memory[bootParameters+bootRSDP:], bootTables)
	return nil
}

// interrupts says where INTA of each slot goes, whether Attach will fill it or not.
func interrupts(slots []slotKind) (list []acpi.PCIInterrupt) {
	for i, s := range slots {
		switch s {
		case slotNIC:
			list = append(list, acpi.PCIInterrupt{Slot: uint8(i), Interrupt: irqNIC})
		case slotDisk:
			list = append(list, acpi.PCIInterrupt{Slot: uint8(i), Interrupt: irqDisk})
		}
	}
	return list
}
