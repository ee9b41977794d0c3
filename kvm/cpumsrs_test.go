//go:build linux && amd64

package kvm_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/kvm"
)

// described returns a description after change has been made to it.
func described(t *testing.T, vm *kvm.VM, change func(*kvm.CPU)) []byte {
	t.Helper()
	b, err := vm.DescribeCPU()
	if err != nil {
		t.Fatal(err)
	}
	var c kvm.CPU
	if err := c.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	change(&c)
	if b, err = c.MarshalBinary(); err != nil {
		t.Fatal(err)
	}
	return b
}

// What a guest has in its MSRs, and KVM does not take here, is known from the other
// host's description: before any memory has moved.
func TestAnMSRThatKVMRefusesIsNamedInTheHello(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	const none = 0x12345678 // no CPU has it
	for index, value := range map[uint32]uint64{
		none:  1,
		0x2ff: 0xc02,              // MTRRs' default: no such memory type
		0x250: 0x0202020202020202, // a fixed range, likewise
		0x400: 5,                  // MC0_CTL: all or nothing
		0x10a: 1 << 63,            // what the CPU is immune to
	} {
		if writeMSR(b.fds[0], index, value) {
			t.Logf("this KVM takes %#x in MSR %#x", value, index)
			continue
		}
		theirs := described(t, a.VM, func(c *kvm.CPU) { c.MSRs = append(c.MSRs, kvm.MSR{Index: index, Value: value}) })
		err := b.JudgeCPU(theirs)
		var judged *kvm.CPUError
		if !errors.As(err, &judged) || len(judged.Missing) != 1 || !strings.Contains(err.Error(), fmt.Sprintf("MSR %#x", index)) {
			t.Errorf("MSR %#x with %#x: %v", index, value, err)
		}
	}
	// An MSR that is 0 on the other host is not missed.
	theirs := described(t, a.VM, func(c *kvm.CPU) { c.MSRs = append(c.MSRs, kvm.MSR{Index: none}) })
	if err := b.JudgeCPU(theirs); err != nil {
		t.Error("an MSR that is 0 there:", err)
	}
	b.load(a.save())
}

// An MSR that a state may not have here is named before any memory has moved, and not tried, though KVM takes
// it: a state that has it is refused in any case.
func TestAnMSRThatNoStateMayHaveIsNamedInTheHello(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	const base, x2APIC = 0x1b, 1 << 10 // of the local APIC, which a state has elsewhere
	value, _ := readMSR(b.fds[0], base)
	value |= x2APIC
	if !writeMSR(b.fds[0], base, value) {
		t.Skip("this KVM has no base of a local APIC among the MSRs")
	}
	theirs := described(t, a.VM, func(c *kvm.CPU) { c.MSRs = append(c.MSRs, kvm.MSR{Index: base, Value: value}) })
	err := b.JudgeCPU(theirs)
	var judged *kvm.CPUError
	if !errors.As(err, &judged) || len(judged.Missing) != 1 || !strings.Contains(err.Error(), "MSR 0x1b") {
		t.Error(err)
	}
}

// A running guest is described with its MSRs, and goes on.
func TestAGuestThatRunsIsDescribedWithItsMSRs(t *testing.T) {
	m := counting(t, 2)
	for _, held := range []bool{false, true} {
		if held {
			m.pause()
		}
		for range 20 {
			b, err := m.VM.DescribeCPU()
			if err != nil {
				t.Fatal(err)
			}
			var c kvm.CPU
			if err := c.UnmarshalBinary(b); err != nil || len(c.MSRs) == 0 {
				t.Fatalf("%d MSRs, %v", len(c.MSRs), err)
			}
			if err := m.VM.JudgeCPU(b); err != nil {
				t.Fatal("its own host:", err)
			}
		}
		if held {
			m.wantStill("it was paused before it was described")
			m.resume()
		}
		m.await(m.rounds() + 3)
	}
}

func TestADescriptionWhoseMSRsAreCutIsRefused(t *testing.T) {
	c := kvm.CPU{Supported: []kvm.CPUIDEntry{{Function: 1}}, MSRs: []kvm.MSR{{0x277, 6}, {0x2ff, 0xc06}}, Features: []kvm.MSR{{0xce, 1 << 31}, {0x10a, 0}}}
	whole, err := c.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got kvm.CPU
	if err := got.UnmarshalBinary(whole); err != nil || !slices.Equal(got.MSRs, c.MSRs) || !slices.Equal(got.Features, c.Features) {
		t.Fatalf("%+v and %+v, %v", got.MSRs, got.Features, err)
	}
	for n := range len(whole) {
		if err := got.UnmarshalBinary(whole[:n]); !errors.Is(err, kvm.ErrState) {
			t.Fatalf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	for _, list := range []*[]kvm.MSR{&c.MSRs, &c.Features} {
		was := *list
		*list = make([]kvm.MSR, 513)
		if _, err := c.MarshalBinary(); err == nil {
			t.Error("more MSRs than are read")
		}
		*list = was
	}
}
