//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
)

// toldOfSGX is a CPUID table by which a guest may choose the keys that launch enclaves.
var toldOfSGX = []CPUIDEntry{{Function: 0}, {Function: 7, Flags: cpuidIndexed, Ebx: 1 << 2, Ecx: 1 << 30}, {Function: 0xd, Flags: 1, Eax: 7}}

// The keys that launch enclaves are part of a state. A host that has none refuses them where the guest uses them,
// and takes a state without them where the guest does not know of any, such as one of a CPU with SGX that was given
// a CPUID without it.
func TestTheKeysThatLaunchEnclavesAreRestoredOrRefused(t *testing.T) {
	for name, c := range map[string]struct {
		index uint32
		seen  bool
		there bool // the host has the MSR
		ok    bool
	}{
		"where there are such keys":           {0x8c, true, true, true},
		"of a guest that does not know":       {0x8f, false, true, true},
		"where there are none":                {0x8c, true, false, false},
		"the last of them":                    {0x8f, true, false, false},
		"where there are none, and unseen":    {0x8d, false, false, true},
		"another MSR that is not here":        {0x90, false, false, false},
		"another one that is before":          {0x8b, false, false, false},
		"what is locked, of a guest with SGX": {0x3a, true, true, true},
		"which is not here":                   {0x3a, false, false, false},
	} {
		table := slices.Clone(toldOfSGX)
		if !c.seen {
			table[1].Ecx = 0
		}
		from, reg := synthetic(t)
		from.sys.msrs[2] = c.index
		from.msr.entries[2] = gokvm.MSREntry{Index: c.index, Data: 9}
		from.cpuid.n = uint32(copy(from.cpuid.entries[:], table))
		to, toReg := synthetic(t)
		if c.there {
			to.sys.msrs[2] = c.index
		}
		err := toReg.LoadDevices(encode(t, reg), nil)
		var msr *MSRError
		if !c.ok {
			if !errors.As(err, &msr) || msr.Index != c.index || !strings.Contains(err.Error(), "does not take 0x9 here") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err := errors.Join(err, toReg.Commit()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := to.savedMSR(c.index); got != 9 {
			t.Errorf("%s: %#x has arrived", name, got)
		}
	}
}

// A host says in the hello, too, whether it has the keys; and whichever of these MSRs KVM has here is saved.
func TestTheKeysThatLaunchEnclavesAreJudgedInTheHello(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v := vm.vcpus[0]
	if err := v.save(); err != nil {
		t.Fatal(err)
	}
	judge := func(index uint32) error {
		c, err := vm.CPU()
		if err != nil {
			t.Fatal(err)
		}
		c.MSRs = []MSR{{index, 1}}
		theirs, err := c.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return vm.JudgeCPU(theirs)
	}
	table := *v.given.cpuid.Load()
	for _, index := range []uint32{0x3a, 0x8c, 0x8d, 0x8e, 0x8f} {
		_, there, err := v.state.readMSR(v.fd, index)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(v.state.msrs, index); got != there {
			t.Errorf("MSR %#x can be read: %v; it is saved: %v", index, there, got)
		}
		if !slices.Contains(vm.sys.msrs, index) {
			t.Errorf("MSR %#x is not asked for", index)
		}
		var judged *CPUError
		switch err := judge(index); {
		case there || unseen(index, table):
			if index != 0x3a && err != nil {
				t.Errorf("MSR %#x: %v", index, err)
			}
		case !errors.As(err, &judged):
			t.Errorf("MSR %#x, which is not here: %v", index, err)
		}
	}
}

// A state whose guest does not know of the keys is taken by a vCPU that has none, and what the vCPU then says it has
// is what it had.
func TestAVCPUWithoutKeysTakesAStateThatHasSome(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	if _, there, err := s.readMSR(v.fd, msrLaunchKey0); there || err != nil || !s.unseen(msrLaunchKey0) {
		t.Skip("this KVM has such keys, or cannot say:", err)
	}
	want := shows(t, v)
	s.msr.entries[s.msr.n] = gokvm.MSREntry{Index: msrLaunchKey0, Data: 9}
	s.msr.n++
	if err := errors.Join(s.check(s.apic), s.spare.try(s), v.restore()); err != nil {
		t.Fatal(err)
	}
	sameState(t, "a state with a key", shows(t, v), want)
	for i := range s.cpuid.entries[:s.cpuid.n] {
		if e := &s.cpuid.entries[i]; answers(e, 7, 0) {
			e.Ecx |= 1 << 30
		}
	}
	if s.unseen(msrLaunchKey0) {
		t.Skip("a guest has no leaf 7 here")
	}
	var msr *MSRError
	if err := s.spare.try(s); !errors.As(err, &msr) || msr.Index != msrLaunchKey0 {
		t.Error("of a guest that uses them:", err)
	}
}
