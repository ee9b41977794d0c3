//go:build linux && amd64

package pc

import (
	"encoding/binary"
	"fmt"
	"io"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/kvm/internal/acpi"
	"github.com/gocolo/lockstep/kvm/internal/board"
	"github.com/gocolo/lockstep/kvm/internal/bzimage"
)

// LoadLinux prepares a paused guest to boot a Linux bzImage: it reads the kernel and,
// unless nil, the initial RAM disk into the guest's memory, writes the command line, the
// boot parameters and the ACPI tables, and puts the first vCPU at the kernel's entry. The
// others wait for the guest to start them. Call it once, before Run. What is no kernel of
// boot protocol 2.12 or later (Linux 3.8), or does not fit into the memory below 3 GiB,
// is ErrKernel, and the guest's memory may then have been written.
//
// A guest that is not to use the ACPI tables has "acpi=off" on its command line, and one
// CPU. A machine whose state comes from another one needs no kernel.
func (m *Machine) LoadLinux(kernel, initrd io.ReaderAt, cmdline string) error {
	return m.whilePaused(func() error { return m.loadLinux(kernel, initrd, cmdline) })
}

// loadLinux does what LoadLinux does; the caller has the turn, and the Machine is paused.
func (m *Machine) loadLinux(kernel, initrd io.ReaderAt, cmdline string) error {
	image, err := bzimage.Parse(kernel)
	if err != nil {
		return err
	}
	low := m.memory[:m.low()]
	at, err := image.Fit(uint64(len(low)), cmdline)
	if err != nil {
		return err
	}
	var pci []acpi.PCIInterrupt
	for _, p := range m.places {
		pci = append(pci, acpi.PCIInterrupt{Slot: p.Slot, Interrupt: p.Interrupt})
	}
	tables, err := board.Tables(len(m.vm.VCPUs()), pci)
	if err != nil {
		return fmt.Errorf("pc: %w", err)
	}
	regions := bzimage.Map(uint64(len(low)), uint64(len(m.memory)-len(low)))
	if err := image.Load(low, kernel, cmdline, regions, bzimage.Tables); err != nil {
		return err
	}
	if initrd != nil {
		if err := image.PlaceRAMDisk(low, at, initrd); err != nil {
			return err
		}
	}
	copy(low[bzimage.Tables:], tables)
	gdt := low[bootGDT:][:len(bootSegments)*8]
	for i, d := range bootSegments {
		binary.LittleEndian.PutUint64(gdt[8*i:], d)
	}
	m.vm.MarkDirty(0, uint64(len(low)))
	return m.enter()
}

// The segments with which a kernel is entered: code is selector 0x10, data 0x18, both
// flat. (Linux, Documentation/x86/boot.rst, "32-bit boot protocol".)
const (
	bootGDT  = 0x500
	bootCode = 0x10
	bootData = 0x18
)

var bootSegments = [4]uint64{bootCode / 8: 0x00cf9b000000ffff, bootData / 8: 0x00cf93000000ffff}

// enter puts the first vCPU at the kernel's entry, in protected mode without paging.
func (m *Machine) enter() error {
	v := m.vm.VCPUs()[0]
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	flat := func(selector uint16, typ uint8) gokvm.Segment {
		return gokvm.Segment{Limit: 0xffffffff, Selector: selector, Typ: typ, Present: 1, DB: 1, S: 1, G: 1}
	}
	s.CS = flat(bootCode, 0xb)
	data := flat(bootData, 3)
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT = gokvm.Descriptor{Base: bootGDT, Limit: uint16(len(bootSegments)*8 - 1)}
	s.CR0, s.CR3, s.CR4, s.EFER = 0x11, 0, 0, 0 // protected mode, and the bit that is always set
	if err := v.SetSregs(s); err != nil {
		return err
	}
	r, err := v.Regs()
	if err != nil {
		return err
	}
	r.RFLAGS, r.RIP, r.RSI = 2, bzimage.Kernel, bzimage.Parameters
	r.RBX, r.RBP, r.RDI = 0, 0, 0
	return v.SetRegs(r)
}
