//go:build linux && amd64

package kvm

import (
	"context"
	"testing"
	"time"
)

// A guest with a paravirtual clock finds there, after pauses that add up to 10 ms, that
// it was stopped, which its watchdogs ask for before they take a vCPU for stuck.
func TestAGuestIsToldByItsClockThatItStoodStill(t *testing.T) {
	vm, _ := shooting(t, 1)
	v := vm.vcpus[0]
	const systemTime, enabled, flags, guestStopped = 0x4b564d01, 1, 29, 1 << 1 // MSR_KVM_SYSTEM_TIME_NEW, struct pvclock_vcpu_time_info
	place := len(vm.memory) - PageSize
	if !vm.sys.clockCtrl {
		t.Skip("this KVM has no KVM_KVMCLOCK_CTRL")
	}
	v.own.Lock()
	err := v.state.writeMSR(v.fd, systemTime, uint64(place)|enabled)
	v.own.Unlock()
	if err != nil {
		t.Skip("this KVM has no paravirtual clock:", err)
	}
	ctx := context.Background()
	goOn := func() {
		t.Helper()
		vm.Resume(ctx)
		for end := time.Now().Add(time.Minute); vm.inside.Load() == 0 && time.Now().Before(end); {
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(2 * time.Millisecond) // in which it enters the guest
		if err := vm.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	goOn()
	clock := vm.memory[place:]
	if clock[0] == 0 && clock[4] == 0 && clock[8] == 0 && clock[16] == 0 {
		t.Skip("this KVM does not keep the clock that it takes")
	}
	clock[flags] &^= guestStopped
	for range 4 { // none of them is as long
		time.Sleep(untold / 3)
		goOn()
	}
	// A thread that had no CPU for those 2 ms has not entered the guest, and does so in the end.
	for end := time.Now().Add(time.Minute); clock[flags]&guestStopped == 0 && time.Now().Before(end); {
		goOn()
	}
	if clock[flags]&guestStopped == 0 {
		t.Errorf("after %v of pauses its clock says nothing of it", 4*untold/3)
	}
}
