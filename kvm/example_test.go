//go:build linux && amd64

package kvm_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
)

// A host VMM adopts what it has: its VM, its memory, its vCPUs. From then on it
// runs the vCPUs through Run, and everything that belongs to the VM is in the
// registry.
func ExampleAttach() {
	var (
		vmfd    uintptr   // from KVM_CREATE_VM
		ram     []byte    // the guest's memory
		vcpufds []uintptr // from KVM_CREATE_VCPU
		runs    [][]byte  // their mappings
	)
	protect := func(ctx context.Context) error {
		vm, err := kvm.Attach(vmfd, kvm.AttachConfig{})
		if err != nil {
			return err
		}
		if err := vm.AddSlot(kvm.Slot{ID: 0, Block: "pc.ram", Mem: ram}); err != nil {
			return err
		}
		for i, fd := range vcpufds {
			v, err := vm.AddVCPU(fd, runs[i])
			if err != nil {
				return err
			}
			go v.Run(ctx, v.Dispatch(kvm.Handler{
				IO: func(x *kvm.IO) error { return nil /* the VMM's own port dispatch */ },
			}))
		}
		var devices vmstate.Registry
		return vm.Register(&devices) // and the VMM's own devices after them
	}
	_ = protect
}

// Before a guest's memory moves, each host sees whether it could run the other's
// guest. One that could not is refused in words, and the guest runs on unprotected.
func ExampleVM_MatchCPU() {
	run := func(ctx context.Context, vm *kvm.VM, cfg protect.Config) (err error) {
		if cfg.Offer, cfg.Judge, err = vm.MatchCPU(); err != nil {
			return err
		}
		job, err := protect.New(cfg)
		if err != nil {
			return err
		}
		return job.Run(ctx)
	}
	_ = run
}

// What a guest wrote between two pauses.
func ExampleVM_ReadDirty() {
	changed := func(ctx context.Context, vm *kvm.VM, block string, pages int) ([]uint64, error) {
		if err := vm.StartDirtyLog(); err != nil {
			return nil, err
		}
		// The guest runs.
		if err := vm.Pause(ctx); err != nil {
			return nil, err
		}
		bitmap := make([]uint64, (pages+63)/64)
		return bitmap, vm.ReadDirty(block, bitmap)
	}
	_ = changed
}

// Where KVM cannot be used, Probe says why.
func ExampleProbe() {
	if err := kvm.Probe(); err != nil {
		log.Printf("no KVM here: %v", err)
		return
	}
	fmt.Println("KVM can create a VM")
}
