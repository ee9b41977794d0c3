//go:build linux && amd64

package kvm_test

import (
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

const (
	reqSetMemory   = 0x4020ae46
	reqGetDirtyLog = 0x4010ae42
)

// logged returns how many slots of a VM have a dirty log.
func (x *adopted) logged(slots uint32) (n int) {
	x.Helper()
	for id := range slots {
		bitmap := make([]uint64, 16)
		request := struct {
			slot, _ uint32
			bitmap  unsafe.Pointer
		}{slot: id, bitmap: unsafe.Pointer(&bitmap[0])}
		switch _, err := rawIoctl(x.fd, reqGetDirtyLog, unsafe.Pointer(&request)); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			x.Fatal(err)
		}
	}
	return n
}

// A host that takes its VM back finds the dirty log as it was before: off. Every page that its guest writes for the
// first time would cost a fault otherwise, for nobody.
func TestTheDirtyLogOfAnAdoptedVMIsOffWhenItIsGivenBack(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for name, cfg := range map[string]kvm.AttachConfig{"a log": {}, "a log that is cleared": {OwnLog: true}} {
		x := newAdoptedWith(t, cfg, 1, nil, pages{64, 0}, pages{128, 64})
		if err := x.StartDirtyLog(); err != nil {
			t.Fatal(err)
		}
		if n := x.logged(2); n != 2 {
			t.Fatalf("%s: %d slots of 2 have a log", name, n)
		}
		if err := x.Close(); err != nil {
			t.Error(name, err)
		}
		if n := x.logged(2); n != 0 {
			t.Errorf("%s: %d slots have a log that nobody reads", name, n)
		}
		if err := x.Close(); err != nil {
			t.Error("closed twice:", err)
		}
	}
}

// A slot whose log KVM does not turn off is an error; all else that was made for the VM is given back all the same.
func TestALogThatIsNotTurnedOffHoldsUpNothingElse(t *testing.T) {
	x := newAdopted(t, 1, nil, pages{64, 0}, pages{128, 64})
	before := leaks.Now(t)
	vm, err := kvm.Attach(uintptr(x.fd), kvm.AttachConfig{KVM: x.dev})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.AddSlot(kvm.Slot{Block: "pc.ram", Mem: x.mem[:64*kvm.PageSize]}); err != nil {
		t.Fatal(err)
	}
	if err := vm.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	refused := leaks.Call{Number: unix.SYS_IOCTL, Args: map[int]uint32{1: reqSetMemory}}
	if err := leaks.Refuse(t, refused, unix.EXFULL, vm.Close); !errors.Is(err, unix.EXFULL) {
		t.Error("the log is still on, and Close returns", err)
	}
	before.Check(t, "a VM whose log stayed on")
}
