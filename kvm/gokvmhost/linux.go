//go:build linux && amd64

package gokvmhost

import (
	"fmt"
	"io"

	"github.com/gocolo/lockstep/kvm/internal/acpi"
	"github.com/gocolo/lockstep/kvm/internal/board"
	"github.com/gocolo/lockstep/kvm/internal/bzimage"
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
	image, err := bzimage.Parse(kernel)
	if err != nil {
		return err
	}
	at, err := image.Fit(uint64(len(p.memory)), cmdline)
	if err != nil {
		return err
	}
	tables, err := board.Tables(len(m.RunData()), interrupts(has.plan()))
	if err != nil {
		return fmt.Errorf("gokvmhost: %w", err)
	}
	if err := m.LoadLinux(kernel, nil, cmdline); err != nil {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	if initrd != nil {
		if err := image.PlaceRAMDisk(p.memory, at, initrd); err != nil {
			return err
		}
	}
	copy(p.memory[bzimage.Tables:], tables)
	bzimage.SetRSDP(p.memory, bzimage.Tables)
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
