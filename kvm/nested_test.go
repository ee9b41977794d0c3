//go:build linux && amd64

package kvm

import (
	"errors"
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
