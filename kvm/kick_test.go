//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// A guest that never leaves by itself is paused, and its Run ended, at whatever step of entering it
// the kick comes: nothing else would get it out.
func TestAGuestThatNeverLeavesIsPausedAtAnyMoment(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	vm, err := Create(Config{VCPUs: 2, Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	copy(vm.Memory()[0x1000:], []byte{0xeb, 0xfe}) // JMP to itself
	ctx, stop := context.WithCancel(context.Background())
	var vcpus sync.WaitGroup
	for i, v := range vm.VCPUs() {
		s, err := v.Sregs()
		s.CS.Base, s.CS.Selector = 0, 0
		if err := errors.Join(err, v.SetSregs(s), v.SetRegs(Regs{RIP: 0x1000, RFLAGS: 2}), v.SetRunnable()); err != nil {
			t.Fatal(err)
		}
		vcpus.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				one, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Duration(n%8)*100*time.Microsecond, cancel)
				if err := v.Run(one, v.Dispatch(Handler{})); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	patient, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for n := range 1000 {
		if err := vm.Pause(patient); err != nil {
			t.Errorf("pause %d: %v", n, err)
			break
		}
		for _, v := range vm.vcpus {
			if v.inKVM.Load() {
				t.Errorf("pause %d: vCPU %d is in the guest", n, v.index)
			}
		}
		if err := vm.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); time.Since(begun) < time.Duration(n%16)*10*time.Microsecond; {
		}
	}
	stop()
	vcpus.Wait()
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}
