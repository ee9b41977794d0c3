//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"testing"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// A guest that has switched nested virtualization on is not saved, since it would not
// go on where it was; when it has switched it off again, it is.
func TestAGuestThatUsesNestedVirtualizationIsNotSaved(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	v := vm.vcpus[0]
	was, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	for _, shot := range []bool{false, true} {
		// KVM does not let a vCPU have it whose CPUID does not say so, and Create's does not.
		s := v.state
		if shot {
			s = v.shot.state
		}
		if _, err := ioctl(v.fd, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&s.regs)); err != nil {
			t.Fatal(err)
		}
		s.takeSregs(&was)
		s.sregs.EFER |= 1 << 12
		var not *NotSavedError
		if err := s.saveLarge(v.fd); !errors.As(err, &not) {
			t.Errorf("SVM: %v", err)
		}
		s.takeSregs(&was)
		s.sregs.CR4 |= 1 << 13
		if err := s.saveLarge(v.fd); !errors.As(err, &not) {
			t.Errorf("VMX: %v", err)
		}
		s.takeSregs(&was)
		if err := s.saveLarge(v.fd); err != nil {
			t.Errorf("neither: %v", err)
		}
	}
	if err := reg.CaptureDevices(); err != nil {
		t.Error(err)
	}
}

// A state of a guest that uses shadow stacks is refused, since it would go on without the pointer
// to the one that it uses. Where they are switched off, or the CPU does not have them on, it is taken.
func TestAGuestThatUsesShadowStacksIsNotTaken(t *testing.T) {
	const user, supervisor, on, branches, cr4CET = 0x6a0, 0x6a2, 1, 1 << 2, 1 << 23
	for name, c := range map[string]struct {
		cr4   uint64
		index uint32
		value uint64
		taken bool
	}{
		"of programs":             {cr4CET, user, on, false},
		"of the kernel":           {cr4CET, supervisor, on | branches, false},
		"branch tracking alone":   {cr4CET, user, branches, true},
		"not on in CR4":           {0, user, on, true},
		"none that is enabled":    {cr4CET, user, 0, true},
		"the same bit of another": {cr4CET, 0x6a4, on, true},
	} {
		state := func() (*VCPUState, *vmstate.Registry) {
			s, reg := synthetic(t)
			s.sys.msrs[2], s.msr.entries[2].Index = c.index, c.index
			s.sregs.CR4 |= c.cr4
			return s, reg
		}
		from, reg := state()
		from.msr.entries[2].Data = c.value
		if from.shadowStacks() == c.taken {
			t.Errorf("%s: in use: %v", name, !c.taken)
		}
		_, to := state()
		err := to.LoadDevices(encode(t, reg), nil)
		var not *NotSavedError
		if c.taken && err != nil || !c.taken && (!errors.As(err, &not) || !errors.Is(err, ErrState)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShadowStacksAreNotOffered(t *testing.T) {
	const shadowStacks, gfni, branches = 1 << 7, 1 << 8, 1 << 20
	table := cpuidOf([]CPUIDEntry{
		{Function: 7, Flags: cpuidIndexed, Ecx: shadowStacks | gfni, Edx: branches},
		{Function: 7, Index: 1, Flags: cpuidIndexed, Ecx: shadowStacks},
	}, 0)
	if e := table[0]; e.Ecx != gfni || e.Edx != branches {
		t.Errorf("leaf 7: ECX %#x, EDX %#x", e.Ecx, e.Edx)
	}
	if e := table[1]; e.Ecx != shadowStacks {
		t.Errorf("leaf 7.1, of which the bit means something else: ECX %#x", e.Ecx)
	}
}

// An MSR that only some CPUs take another value of, and that KVM may not list, is part of a state
// wherever it can be read: the one by which a debugger has a guest stop at branches.
func TestEveryMSRThatOnlySomeCPUsSetIsPartOfAState(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	s := vm.vcpus[0].state
	_, there, err := s.readMSR(vm.vcpus[0].fd, msrDebugCtl)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Contains(s.msrs, msrDebugCtl); got != there {
		t.Errorf("DEBUGCTL can be read: %v; it is saved: %v", there, got)
	}
}

// No guest is offered nested virtualization, which is not saved, and nothing else of those words is taken away.
func TestNestedVirtualizationIsNotOffered(t *testing.T) {
	const vmx, svm = 1 << 5, 1 << 2
	table := cpuidOf([]CPUIDEntry{
		{Function: 1, Ecx: ^uint32(0)},
		{Function: 0x80000001, Ecx: ^uint32(0)},
	}, 0)
	for i, want := range []uint32{^uint32(vmx), ^uint32(svm)} {
		if got := table[i].Ecx; got != want {
			t.Errorf("leaf %#x: ECX %#x, want %#x", table[i].Function, got, want)
		}
	}
}

// What KVM may have and does not list is asked for, also what only other CPUs let a guest set.
func TestMSRsThatKVMDoesNotListAreAskedFor(t *testing.T) {
	list := unlisted(10)
	for _, index := range []uint32{
		0x200, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x26f, 0x2ff, // memory types
		0x179, 0x17a, 0x17b, 0x280, 0x289, 0x400, 0x403, 0x424, 0x427, // machine checks
		0x3a, 0x8c, 0x8d, 0x8e, 0x8f, 0x1d9, 0xc0000103, 0xc0010114, 0xc0010140, 0xc0010141, 0x4b564d05, 0x4b564d08,
	} {
		if !slices.Contains(list, index) {
			t.Errorf("MSR %#x is not", index)
		}
	}
	for _, index := range []uint32{0x10, 0x11, 0x12, 0x8b, 0x90, 0x28a, 0x428, 0x6e0, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d04} {
		if slices.Contains(list, index) {
			t.Errorf("MSR %#x is", index)
		}
	}
	if n := len(unlisted(1000)); n > maxMSRs-msrsListedNow {
		t.Errorf("%d MSRs leave no room for those that KVM lists", n)
	}
}

const msrsListedNow = 200 // KVM lists about 150
