//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// modes are situations that a guest's kernel brings its CPU into: how it addresses memory, where
// and what its local APIC is, what it has told KVM.
func modes() (list []situation) {
	add := func(name string, set func(vm *VM) error) { list = append(list, situation{name, set}) }
	const (
		cr0TS, cr0EM                                      = 1 << 3, 1 << 2
		cr4PSE, cr4PGE, cr4SMEP, cr4SMAP                  = 1 << 4, 1 << 7, 1 << 20, 1 << 21
		eferSCE, eferNXE                                  = 1 << 0, 1 << 11
		baseBSP, baseX2APIC, baseOn                       = 1 << 8, 1 << 10, 1 << 11
		flagTF, flagIF, flagDF, flagNT, flagRF, flagVM    = 1 << 8, 1 << 9, 1 << 10, 1 << 14, 1 << 16, 1 << 17
		flagAC, flagID, flagIOPL3                         = 1 << 18, 1 << 21, 3 << 12
		pdpt                                              = 0x2020
		isr, tmr, irr, esr, icrLow, icrHigh, id, spurious = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310, 0x20, 0xf0
	)
	sregs := func(name string, change func(s *gokvm.Sregs)) {
		add(name, func(vm *VM) error {
			s, err := vm.vcpus[0].Sregs()
			if err != nil {
				return err
			}
			change(&s)
			return vm.vcpus[0].SetSregs(s)
		})
	}
	sregs("paging of 32 bits", func(s *gokvm.Sregs) { s.CR0, s.CR3, s.CR4 = s.CR0|cr0PE|cr0PG, 0x2018, cr4PSE })
	// The four entries are in the memory of this VM alone; to the other they come with the state.
	add("paging with PDPTRs", func(vm *VM) error {
		const present = 1
		for i := range 4 {
			binary.LittleEndian.PutUint64(vm.Memory()[pdpt+8*i:], uint64(0x5000+i*PageSize)|present)
		}
		s, err := vm.vcpus[0].Sregs()
		s.CR0, s.CR3, s.CR4 = s.CR0|cr0PE|cr0PG, pdpt, cr4PAE
		return errors.Join(err, vm.vcpus[0].SetSregs(s))
	})
	long := func(s *gokvm.Sregs) {
		s.CR0, s.CR3, s.CR4 = s.CR0|cr0PE|cr0PG, 0x3018, cr4PAE|cr4PGE|cr4SMEP|cr4SMAP
		s.EFER = eferLMA | eferLME | eferNXE | eferSCE
	}
	sregs("long mode", func(s *gokvm.Sregs) { long(s); s.CS.L, s.CS.DB = 1, 0 })
	sregs("long mode with code of 32 bits", func(s *gokvm.Sregs) { long(s); s.CS.L, s.CS.DB = 0, 1 })
	sregs("long mode that waits for paging", func(s *gokvm.Sregs) { s.CR0, s.CR4, s.EFER = s.CR0|cr0PE, cr4PAE, eferLME })
	sregs("an FPU that is not there", func(s *gokvm.Sregs) { s.CR0 |= cr0TS | cr0EM })
	sregs("caches that are off", func(s *gokvm.Sregs) { s.CR0 |= cr0CD | cr0NW })
	sregs("an x2APIC", func(s *gokvm.Sregs) { s.ApicBase |= baseX2APIC })
	sregs("an APIC that is off", func(s *gokvm.Sregs) { s.ApicBase &^= baseOn })
	sregs("an APIC elsewhere", func(s *gokvm.Sregs) { s.ApicBase = s.ApicBase&0xfff | 0xfec10000 })
	sregs("an APIC that is not the first", func(s *gokvm.Sregs) { s.ApicBase &^= baseBSP })

	for name, flags := range map[string]uint64{
		"single steps": flagTF, "a breakpoint that is resumed": flagRF, "other flags": flagIF | flagDF | flagNT | flagAC | flagID | flagIOPL3,
	} {
		add(name, func(vm *VM) error {
			r, err := vm.vcpus[0].Regs()
			r.RFLAGS |= flags
			return errors.Join(err, vm.vcpus[0].SetRegs(r))
		})
	}
	add("a virtual 8086", func(vm *VM) error {
		v := vm.vcpus[0]
		s, err1 := v.Sregs()
		r, err2 := v.Regs()
		s.CR0 |= cr0PE
		for _, g := range []*gokvm.Segment{&s.CS, &s.DS, &s.ES, &s.FS, &s.GS, &s.SS} {
			*g = gokvm.Segment{Base: 0x12340, Limit: 0xffff, Selector: 0x1234, Typ: 3, Present: 1, DPL: 3, S: 1}
		}
		r.RFLAGS |= flagVM | flagIOPL3
		return errors.Join(err1, err2, v.SetSregs(s), v.SetRegs(r))
	})

	for _, m := range []struct {
		name  string
		index uint32
		value uint64
	}{
		{"KVM's clock", 0x4b564d01, 0x6001},
		{"KVM's clock by its old name", 0x12, 0x6001},
		{"ends of interrupts in memory", 0x4b564d04, 0x7001},
		{"stolen time", 0x4b564d03, 0x8001},
		{"page faults that wait", 0x4b564d02, 0x9001},
		{"no polling by the host", 0x4b564d05, 0},
		{"other memory types", 0x277, 0x0007010600070106},
		{"stops at branches", msrDebugCtl, 2},
		{"a machine check in progress", 0x17a, 5},
		{"less speculation", 0x48, 1},
	} {
		add(m.name, func(vm *VM) error { return vm.vcpus[0].state.writeMSR(vm.vcpus[0].fd, m.index, m.value) })
	}

	lapic := func(name string, x2APIC bool, change func(set func(reg int, value uint32))) {
		add(name, func(vm *VM) error {
			v := vm.vcpus[0]
			s, err := v.Sregs()
			if x2APIC {
				s.ApicBase |= baseX2APIC
			}
			if err := errors.Join(err, v.SetSregs(s)); err != nil {
				return err
			}
			var l gokvm.LAPICState
			if _, err := ioctl(v.fd, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&l)); err != nil {
				return err
			}
			change(func(reg int, value uint32) { binary.LittleEndian.PutUint32(l.Regs[reg:], value) })
			_, err = ioctl(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&l))
			return err
		})
	}
	lapic("an APIC with an ID of the guest's", false, func(set func(int, uint32)) { set(id, 7<<24) })
	lapic("an APIC that has seen an error", false, func(set func(int, uint32)) { set(esr, 0x40) })
	lapic("an APIC that does not tell ends", false, func(set func(int, uint32)) { set(spurious, 0x13ff) })
	lapic("an APIC with each line", false, func(set func(int, uint32)) {
		set(spurious, 0x1ff)
		for reg := 0x330; reg <= 0x370; reg += 0x10 {
			set(reg, 0x40+uint32(reg>>4&7))
		}
	})
	lapic("an APIC with a level that waits for its end", false, func(set func(int, uint32)) {
		const lint0, level, remote = 0x350, 1 << 15, 1 << 14
		set(spurious, 0x1ff)
		set(lint0, level|remote|0x30)
	})
	lapic("an x2APIC that has sent", true, func(set func(int, uint32)) {
		set(spurious, 0x1ff)
		set(icrLow, 0x4031)
		set(icrHigh, 3)
	})
	lapic("an x2APIC with requests", true, func(set func(int, uint32)) {
		set(spurious, 0x1ff)
		set(irr+0x30, 1<<4)
		set(isr+0x20, 1<<4)
		set(tmr+0x20, 1<<4)
	})
	return list
}
