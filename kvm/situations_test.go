//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// whole is what KVM says of a VM with one vCPU, without the clocks, which run on.
type whole struct {
	*VCPUState
	*ChipState
}

func wholeOf(t *testing.T, vm *VM) whole {
	t.Helper()
	c, err := NewChipState(vm.fd)
	if err := errors.Join(err, c.Save(vm.fd)); err != nil {
		t.Fatal(err)
	}
	for i := range c.pit.Channels {
		c.pit.Channels[i].CountLoadTime = 0
	}
	s := shows(t, vm.vcpus[0])
	const priority, current = 0xa0, 0x390 // made of the others when it is looked at; the count of the APIC's timer
	clear(s.lapic.Regs[priority:][:4])
	clear(s.lapic.Regs[current:][:4])
	return whole{s, c}
}

// differs names what is not the same.
func (w whole) differs(from whole) (list []string) {
	for _, p := range []struct {
		name string
		same bool
	}{
		{fmt.Sprintf("MP state %d, want %d", w.mp.State, from.mp.State), w.mp == from.mp},
		{fmt.Sprintf("special registers %+v, want %+v", w.sregs, from.sregs), w.sregs == from.sregs},
		{"general registers", w.regs == from.regs},
		{fmt.Sprintf("XCRs %v, want %v", w.xcrs.Registers[:1], from.xcrs.Registers[:1]), w.xcrs == from.xcrs},
		{"XSAVE area", bytes.Equal(w.xsave, from.xsave)},
		{fmt.Sprintf("debug registers %+v, want %+v", w.debug, from.debug), w.debug == from.debug},
		{fmt.Sprintf("events %+v, want %+v", w.events, from.events), w.events == from.events},
		{"MSRs", w.msr == from.msr},
		{"local APIC", w.lapic == from.lapic},
		{fmt.Sprintf("PIC %x, want %x", w.chip[0].Chip[:picSize], from.chip[0].Chip[:picSize]), w.chip[0] == from.chip[0]},
		{fmt.Sprintf("second PIC %x, want %x", w.chip[1].Chip[:picSize], from.chip[1].Chip[:picSize]), w.chip[1] == from.chip[1]},
		{"IOAPIC", w.chip[2] == from.chip[2]},
		{fmt.Sprintf("PIT %+v, want %+v", w.pit, from.pit), w.pit == from.pit},
	} {
		if !p.same {
			list = append(list, p.name)
		}
	}
	return list
}

// situation is something that a VM can be in.
type situation struct {
	name string
	set  func(vm *VM) error
}

func situations() (list []situation) {
	add := func(name string, set func(vm *VM) error) { list = append(list, situation{name, set}) }
	events := func(name string, change func(e *gokvm.VCPUEvents)) {
		add(name, func(vm *VM) error {
			var e gokvm.VCPUEvents
			fd := vm.vcpus[0].fd
			if _, err := ioctl(fd, "KVM_GET_VCPU_EVENTS", kvmGetVCPUEvents, unsafe.Pointer(&e)); err != nil {
				return err
			}
			e.Flags |= eventsFlags &^ eventsEnabled
			if !vm.sys.smm {
				e.Flags &^= 1 << 3 // KVM_VCPUEVENT_VALID_SMM
			}
			change(&e)
			_, err := ioctl(fd, "KVM_SET_VCPU_EVENTS", kvmSetVCPUEvents, unsafe.Pointer(&e))
			return err
		})
	}
	events("an exception", func(e *gokvm.VCPUEvents) { e.E.Inject, e.E.Nr = 1, 6 })
	events("an exception with an error code", func(e *gokvm.VCPUEvents) {
		e.E = gokvm.Exception{Inject: 1, Nr: 13, HadErrorCode: 1, ErrorCode: 0x1234}
	})
	events("a double fault", func(e *gokvm.VCPUEvents) { e.E = gokvm.Exception{Inject: 1, Nr: 8, HadErrorCode: 1} })
	events("an interrupt", func(e *gokvm.VCPUEvents) { e.I.Inject, e.I.Nr = 1, 0x31 })
	events("a software interrupt", func(e *gokvm.VCPUEvents) { e.I.Inject, e.I.Nr, e.I.Soft = 1, 0x80, 1 })
	events("the shadow of MOV SS", func(e *gokvm.VCPUEvents) { e.I.Shadow = 1 })
	events("the shadow of STI", func(e *gokvm.VCPUEvents) { e.I.Shadow = 2 })
	events("an NMI", func(e *gokvm.VCPUEvents) { e.N.Inject, e.N.Masked = 1, 1 })
	events("a pending NMI", func(e *gokvm.VCPUEvents) { e.N.Pending = 1 })
	events("a pending NMI behind another", func(e *gokvm.VCPUEvents) { e.N.Pending, e.N.Masked = 1, 1 })
	events("a pending SMI", func(e *gokvm.VCPUEvents) { e.S.Pening = 1 })
	events("a start's vector", func(e *gokvm.VCPUEvents) { e.SipiVector = 0x9a })

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
	sregs("data segments of 4 GiB in real mode", func(s *gokvm.Sregs) {
		for _, g := range []*gokvm.Segment{&s.DS, &s.ES, &s.FS, &s.GS} {
			g.Limit, g.G, g.DB = 0xffffffff, 1, 1
		}
	})
	sregs("odd bases", func(s *gokvm.Sregs) { s.FS.Base, s.GS.Base, s.DS.Base = 0x12345, 0x7fff0123, 3 })
	sregs("unusable segments", func(s *gokvm.Sregs) {
		for _, g := range []*gokvm.Segment{&s.DS, &s.ES, &s.FS, &s.GS, &s.LDT} {
			*g = gokvm.Segment{Unusable: 1}
		}
	})
	sregs("other types", func(s *gokvm.Sregs) {
		s.CR0 |= cr0PE
		s.CS.Typ, s.CS.Selector, s.SS.Typ, s.SS.Selector = 0xf, 0x8, 0x7, 0x10
		s.DS.Typ, s.ES.Typ, s.FS.Typ, s.GS.Typ = 0x1, 0x3, 0x5, 0x7
		s.DS.AVL, s.ES.DPL, s.ES.Selector = 1, 3, 0x1b
	})
	sregs("tables", func(s *gokvm.Sregs) {
		s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit = 0x1234560, 0x7f, 0x6543210, 0x3ff
		s.LDT = gokvm.Segment{Base: 0x5000, Limit: 0x27, Selector: 0x28, Typ: 2, Present: 1}
		s.TR = gokvm.Segment{Base: 0x6000, Limit: 0x67, Selector: 0x30, Typ: 11, Present: 1}
	})
	sregs("a task priority", func(s *gokvm.Sregs) { s.CR8 = 9 })
	sregs("a fault's address", func(s *gokvm.Sregs) { s.CR2 = 0xdeadbeef000 })

	for i, d := range []gokvm.DebugRegs{
		{DB: [4]uint64{1, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 4}, DR6: 0xffff0ff0, DR7: 0x400},
		{DB: [4]uint64{0x1000}, DR6: 0xffff4ff1, DR7: 0xd0703},
		{DR6: 0xffff0ff0 | 1<<13, DR7: 0x2400},
	} {
		add(fmt.Sprintf("debug registers %d", i), func(vm *VM) error {
			_, err := ioctl(vm.vcpus[0].fd, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&d))
			return err
		})
	}

	// Components that XSTATE_BV does not name have their initial state, whatever the area has there.
	for _, bv := range []uint64{0, 1, 2, 3, 4, 5, 6, 7, 0xe4, 0xe7} {
		add(fmt.Sprintf("XSTATE_BV %#x", bv), func(vm *VM) error {
			v := vm.vcpus[0]
			const header = 512
			area := make([]byte, len(v.state.xsave))
			for i := range min(len(area), 0xb00) {
				area[i] = byte(i*7 + 3)
			}
			binary.LittleEndian.PutUint32(area[24:], 0x1fa0) // MXCSR
			clear(area[464:576])
			var x gokvm.XCRS
			if _, err := ioctl(v.fd, "KVM_GET_XCRS", kvmGetXCRS, unsafe.Pointer(&x)); err != nil {
				return err
			}
			x.Registers[0].Value |= bv | 3
			if _, err := ioctl(v.fd, "KVM_SET_XCRS", kvmSetXCRS, unsafe.Pointer(&x)); err != nil {
				return err
			}
			binary.LittleEndian.PutUint64(area[header:], bv)
			_, err := ioctl(v.fd, "KVM_SET_XSAVE", kvmSetXSave, unsafe.Pointer(&area[0]))
			return err
		})
	}

	for state := range uint32(mpStateLast + 1) {
		add(fmt.Sprintf("MP state %d", state), func(vm *VM) error {
			mp := gokvm.MPState{State: state}
			_, err := ioctl(vm.vcpus[0].fd, "KVM_SET_MP_STATE", kvmSetMPState, unsafe.Pointer(&mp))
			return err
		})
	}

	lapic := func(name string, change func(set func(reg int, value uint32))) {
		add(name, func(vm *VM) error {
			var l gokvm.LAPICState
			fd := vm.vcpus[0].fd
			if _, err := ioctl(fd, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&l)); err != nil {
				return err
			}
			change(func(reg int, value uint32) { binary.LittleEndian.PutUint32(l.Regs[reg:], value) })
			_, err := ioctl(fd, "KVM_SET_LAPIC", kvmSetLAPIC, unsafe.Pointer(&l))
			return err
		})
	}
	const tpr, ldr, dfr, spurious, isr, tmr, irr, icrLow, icrHigh = 0x80, 0xd0, 0xe0, 0xf0, 0x100, 0x180, 0x200, 0x300, 0x310
	const timer, lint0, lint1, initial, current, divide = 0x320, 0x350, 0x360, 0x380, 0x390, 0x3e0
	for mode, name := range []string{"once", "again and again"} {
		lapic("a timer that ends "+name, func(set func(int, uint32)) {
			set(spurious, 0x1ff)
			set(divide, 0xa) // 128: it ends in minutes
			set(timer, uint32(mode)<<17|0x40)
			set(initial, 0x7fffffff)
			set(current, 0x7ffffff0)
		})
	}
	lapic("a timer of deadlines", func(set func(int, uint32)) {
		set(spurious, 0x1ff)
		set(timer, 2<<17|0x41)
	})
	lapic("requests and services", func(set func(int, uint32)) {
		set(spurious, 0x1ff)
		set(irr+0x10, 1<<5|1<<9)
		set(irr+0x70, 1<<31)
		set(isr+0x20, 1<<3)
		set(tmr+0x10, 1<<9)
		set(tpr, 0x20)
	})
	lapic("lines and an order", func(set func(int, uint32)) {
		set(spurious, 0x13f)
		set(lint0, 0x10700)
		set(lint1, 0x400)
		set(ldr, 2<<24)
		set(dfr, 0x0fffffff)
		set(icrHigh, 1<<24)
		set(icrLow, 0x4031)
	})

	chip := func(name string, id uint32, change func(b []byte)) {
		add(name, func(vm *VM) error {
			c := gokvm.IRQChip{ChipID: id}
			if _, err := ioctl(vm.fd, "KVM_GET_IRQCHIP", kvmGetIRQChip, unsafe.Pointer(&c)); err != nil {
				return err
			}
			change(c.Chip[:])
			_, err := ioctl(vm.fd, "KVM_SET_IRQCHIP", kvmSetIRQChip, unsafe.Pointer(&c))
			return err
		})
	}
	// last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state,
	// auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask
	for id := range uint32(2) {
		for state := range byte(4) {
			chip(fmt.Sprintf("PIC %d, initialised up to word %d", id, state), id, func(b []byte) {
				copy(b[5:], []byte{0x30, 1, 0, 1, state, state & 1, 0, 0, 1})
			})
		}
		chip(fmt.Sprintf("PIC %d with requests", id), id, func(b []byte) {
			copy(b, []byte{0x0a, 0x0a, 0xf0, 0x40, 3, 0x70, 0, 1})
			b[14] = 0x08
		})
	}
	const redirections = 24
	chip("IOAPIC whose lines wait for their end", 2, func(b []byte) {
		for i := range redirections {
			e := uint64(0x20+i) | 1<<15 | uint64(i&1)<<14 | uint64(i&3)<<8 | 1<<56
			if i >= 20 {
				e |= 1 << 16
			}
			binary.LittleEndian.PutUint64(b[24+8*i:], e)
		}
		b[8] = 0x12 // ioregsel
	})
	chip("IOAPIC with an ID and a mask", 2, func(b []byte) {
		binary.LittleEndian.PutUint32(b[12:], 5) // id
		binary.LittleEndian.PutUint64(b[24+8*3:], 0x01_00_0000_0001_0931)
	})

	for mode := range uint8(6) {
		for ch := range 3 {
			add(fmt.Sprintf("PIT channel %d in mode %d", ch, mode), func(vm *VM) error {
				var p gokvm.PITState2
				if _, err := ioctl(vm.fd, "KVM_GET_PIT2", kvmGetPIT2, unsafe.Pointer(&p)); err != nil {
					return err
				}
				p.Channels[ch] = gokvm.PITChannelState{
					Count: 0x10000 - uint32(mode), LatchedCount: 0x1234, CountLatched: mode % 4, StatusLatched: mode & 1, Status: 0x80 | mode,
					ReadState: 1 + mode%4, WriteState: 1 + mode%4, WriteLatch: 0x56, RWMode: 1 + mode%3, Mode: mode, BCD: mode & 1, Gate: 1,
				}
				const stands = 1 // KVM_PIT_FLAGS_HPET_LEGACY: no interrupt comes of channel 0
				if p.Flags = uint32(mode) & stands; ch == 0 {
					p.Flags = stands
				}
				_, err := ioctl(vm.fd, "KVM_SET_PIT2", kvmSetPIT2, unsafe.Pointer(&p))
				return err
			})
		}
	}
	return list
}

// Whatever a VM can be in, each kind by itself: it is the same after it was saved and restored, in a
// VM that has not run, in one that has, and in either after any other.
func TestEachSituationOfAVMIsRestored(t *testing.T) {
	_, ran, _ := states(t)
	create := func() (*VM, *vmstate.Registry) {
		vm, err := Create(Config{VCPUs: 1, Memory: uint64(len(ran.vm.Memory()))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vm.Close() })
		reg := &vmstate.Registry{}
		if err := vm.Register(reg); err != nil {
			t.Fatal(err)
		}
		return vm, reg
	}
	a, from := create()
	type target struct {
		name string
		vm   *VM
		reg  *vmstate.Registry
	}
	b, to := create()
	targets := []target{{"has not run", b, to}, {"has run", ran.vm, &vmstate.Registry{}}}
	if err := ran.vm.Register(targets[1].reg); err != nil {
		t.Fatal(err)
	}
	base := bytes.Clone(encode(t, from))
	was := wholeOf(t, a)
	set, refused := 0, 0
	for _, s := range slices.Concat(situations(), modes()) {
		if err := errors.Join(from.LoadDevices(base, nil), from.Commit()); err != nil {
			t.Fatalf("before %s: %v", s.name, err)
		}
		if err := s.set(a); err != nil {
			t.Logf("%s: KVM does not take it here: %v", s.name, err)
			refused++
			continue
		}
		state := bytes.Clone(encode(t, from))
		want := wholeOf(t, a)
		if len(want.differs(was)) == 0 {
			t.Logf("%s: nothing is other than before", s.name)
		} else {
			set++
		}
		for _, to := range targets {
			if err := errors.Join(to.reg.LoadDevices(state, nil), to.reg.Commit()); err != nil {
				t.Errorf("%s, in a VM that %s: %v", s.name, to.name, err)
				continue
			}
			if list := wholeOf(t, to.vm).differs(want); len(list) > 0 {
				t.Errorf("%s, in a VM that %s: %q", s.name, to.name, list)
			}
		}
	}
	if set < 50 {
		t.Errorf("%d situations, and %d that KVM does not take: this test tests little", set, refused)
	}
	t.Logf("%d situations, and %d that KVM does not take", set, refused)
}
