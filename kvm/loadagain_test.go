//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// initFromTheIOAPIC has an interrupt controller send the VM's first vCPU an INIT.
func initFromTheIOAPIC(vm *VM) error {
	const pin, redirections = 5, 24
	chips := vm.chips
	if err := chips.saveChips(vm.fd); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(chips.chip[2].Chip[redirections+8*pin:], 5<<8|1<<14) // to APIC ID 0
	return errors.Join(chips.restoreChips(vm.fd), vm.SetIRQ(pin, true), vm.SetIRQ(pin, false))
}

// An INIT or a start that a vCPU gets while it stands still, KVM settles when the vCPU is looked at.
// Nothing is left of it in the state that is loaded then, whatever the vCPU had before.
func TestAnINITBetweenTwoLoadsLeavesNothing(t *testing.T) {
	list, v, load := states(t)
	load(list[2])
	want := shows(t, v)
	for name, disturb := range map[string]func() error{
		"an INIT from the IOAPIC": func() error { return initFromTheIOAPIC(v.vm) },
		"an INIT in the state": func() error {
			v.staged.events.S.LatchedInit = 1
			return v.restore()
		},
		"a start in the state": func() error {
			v.staged.mp.State, v.staged.events.SipiVector = mpStateLast, 3
			return v.restore()
		},
	} {
		load(list[2])
		if err := disturb(); err != nil {
			t.Fatal(err)
		}
		if !v.held.ok {
			t.Fatal("what the vCPU has is not known")
		}
		load(list[2])
		sameState(t, name, shows(t, v), want)
	}
}

// A state from a KVM that does not tell PDPTRs has them in memory only, and each load brings other
// memory: so KVM is given the special registers again, equal or not, and reads the PDPTRs anew. To see
// that it was given them the test changes a segment's base in KVM alone, which giving them undoes.
func TestPDPTRsThatAreInMemoryAreReadAnew(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := &v.staged.sregs
	s.CR0, s.CR4, s.EFER, s.CS.L = cr0PE|cr0PG, cr4PAE, 0, 0
	for flags, again := range map[uint64]bool{0: true, sregsFlags: !v.staged.sys.sregs2} {
		if s.Flags = flags; v.restore() != nil {
			t.Fatal("this KVM does not take PAE paging")
		}
		other := *v.staged
		other.sregs.GS.Base ^= 0x1000
		if err := other.putSregs(v.fd); err != nil {
			t.Fatal(err)
		}
		if err := v.restore(); err != nil {
			t.Fatal(err)
		}
		if got := shows(t, v).sregs.GS.Base == s.GS.Base; got != again {
			t.Errorf("PDPTRs told: %v; the registers were set again: %v", flags != 0, got)
		}
	}
}

// Whatever befalls a vCPU between two loads, it then has all of the second.
func TestAVCPUHasAllOfAStateWhateverCameBefore(t *testing.T) {
	list, v, load := states(t)
	ctx := context.Background()
	image := bytes.Clone(v.vm.Memory())
	var want []*VCPUState
	for _, state := range list {
		v.held.ok = false
		load(state)
		want = append(want, shows(t, v))
	}
	run := func() error {
		err := v.vm.Resume(ctx)
		for was, now := entered(v), entered(v); now == was && err == nil; now = entered(v) {
			err = errors.Join(v.vm.Pause(ctx), v.vm.Resume(ctx))
		}
		return errors.Join(err, v.vm.Pause(ctx))
	}
	between := []func() error{
		func() error { return nil },
		run,
		v.save,
		func() error { return errors.Join(run(), v.save()) },
		func() error { return initFromTheIOAPIC(v.vm) },
		func() error { return errors.Join(run(), initFromTheIOAPIC(v.vm)) },
		func() error {
			regs, err := v.Regs()
			regs.RAX++
			return errors.Join(err, v.SetRegs(regs))
		},
		func() error {
			s, err := v.Sregs()
			s.GS.Base ^= 0x1000
			return errors.Join(err, v.SetSregs(s))
		},
		func() error { _, err := v.vm.DescribeCPU(); return err },
		func() error { // a restore that fails half way
			v.staged.msr.entries[0].Data ^= 1
			v.staged.xcrs.Registers[0].Value |= 1 << 62
			if v.restore() == nil {
				return errors.New("it did not fail")
			}
			return nil
		},
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		what, n := r.IntN(len(between)), r.IntN(len(list))
		if err := between[what](); err != nil {
			t.Fatalf("%d: %v", what, err)
		}
		copy(v.vm.Memory(), image)
		load(list[n])
		if sameState(t, "after others", shows(t, v), want[n]); t.Failed() {
			t.Fatalf("after %d", what)
		}
	}
}

// What a vCPU was sent before a state is loaded is not part of it, though KVM may have it queued: an
// NMI, and where there is system management an SMI.
func TestWhatIsQueuedForAVCPUIsGoneWithTheNextLoad(t *testing.T) {
	const sendNMI, sendSMI, capSMM = 0xae9a, 0xaeb7, 117
	list, v, load := states(t)
	load(list[0])
	want := shows(t, v).events
	queue := map[string]func() error{"NMI": func() error {
		_, err := ioctlValue(v.fd, "KVM_NMI", sendNMI, 0)
		return err
	}}
	if capability(v.vm.fd, capSMM) != 0 {
		queue["SMI"] = func() error {
			_, err := ioctlValue(v.fd, "KVM_SMI", sendSMI, 0)
			return err
		}
	}
	for name, send := range queue {
		for seen, look := range map[string]func(){"": func() {}, " that KVM has looked at": func() { shows(t, v) }} {
			if err := send(); err != nil {
				t.Skip(err)
			}
			look()
			load(list[0])
			if got := shows(t, v).events; got != want {
				t.Errorf("after an %s%s: %+v, want %+v", name, seen, got, want)
			}
		}
	}
}

// What the flags of a state do not name is off after a load, and not as the vCPU had it before, though
// KVM by itself leaves alone what it is not told of.
func TestWhatAStateDoesNotTellOfIsOff(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	if v.staged.kept&eventsNMI == 0 {
		t.Fatal("this KVM tells of no NMI")
	}
	v.staged.events.N.Pending, v.staged.events.I.Shadow = 1, 1
	for _, flags := range []uint32{eventsNMI | eventsShadow, 0} {
		if v.staged.events.Flags = flags; v.restore() != nil {
			t.Fatal("KVM refuses the events")
		}
		e := shows(t, v).events
		if told := flags != 0; (e.N.Pending != 0) != told || (e.I.Shadow != 0) != told {
			t.Errorf("flags %#x: NMIs pending %d, interrupt shadow %d", flags, e.N.Pending, e.I.Shadow)
		}
	}
}

// An event of which a state does not tell is written as one that is not there, so that KVM does not keep it; one of
// which the state tells is written as it is.
func TestEventsOfWhichAStateDoesNotTellAreWrittenAsNone(t *testing.T) {
	s := &VCPUState{flags: eventsFlags, kept: eventsKept}
	all := gokvm.VCPUEvents{TripleFault: 1}
	all.N.Pending, all.I.Shadow = 1, 2
	all.S = gokvm.SMI{SMM: 1, Pening: 1, SMMInsideNMI: 1, LatchedInit: 1}
	for flag, want := range map[uint32]func(e *gokvm.VCPUEvents){
		0:                 func(*gokvm.VCPUEvents) {},
		eventsNMI:         func(e *gokvm.VCPUEvents) { e.N.Pending = 1 },
		eventsShadow:      func(e *gokvm.VCPUEvents) { e.I.Shadow = 2 },
		eventsSMM:         func(e *gokvm.VCPUEvents) { e.S = all.S },
		eventsTripleFault: func(e *gokvm.VCPUEvents) { e.TripleFault = 1 },
		eventsKept:        func(e *gokvm.VCPUEvents) { *e = all },
	} {
		s.events = all
		s.events.Flags = flag
		var is gokvm.VCPUEvents
		want(&is)
		is.Flags = eventsKept
		if got := s.told(); got != is {
			t.Errorf("flags %#x: %+v is written, want %+v", flag, got, is)
		}
		if s.events.Flags != flag || s.events.S != all.S {
			t.Errorf("flags %#x: the state is another now", flag)
		}
	}
	s.kept = 0 // a KVM that reports none of them is not told of them either
	s.events = gokvm.VCPUEvents{Flags: eventsPayload | eventsTripleFault}
	s.flags = eventsFlags &^ eventsEnabled
	if got := s.told(); got.Flags != 0 {
		t.Errorf("flags %#x are written to a KVM that does not have them", got.Flags)
	}
}
