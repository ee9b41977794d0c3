//go:build linux && amd64

package kvm

import (
	"runtime"
	"testing"
	"time"
)

// Whoever pauses a VM, and the vCPUs that are about to leave the guest, watch for each other while there is a CPU for
// each of those that do not wait in the kernel.
func TestThreadsWatchForEachOtherWhileThereIsACPUForEach(t *testing.T) {
	for _, c := range []struct {
		vcpus, cpus     int
		pauses, gathers bool
	}{{1, 1, false, true}, {2, 1, false, false}, {1, 2, true, true}, {2, 2, false, true}, {3, 2, false, false}, {2, 3, true, true}} {
		vm := &VM{vcpus: make([]*VCPU, c.vcpus)}
		vm.watchOn(c.cpus)
		if vm.watching > 0 != c.pauses || vm.gathers > 0 != c.gathers {
			t.Errorf("%d vCPUs on %d CPUs: who pauses them watches for %v, they for each other for %v", c.vcpus, c.cpus, vm.watching, vm.gathers)
		}
	}
}

// A vCPU saves itself when the last of the others has left the guest, for which it waits. If they take long, it waits
// in vain a few times, and then only now and then.
func TestAVCPUWaitsForThoseThatAreStillInTheGuest(t *testing.T) {
	vm := &VM{gathers: time.Minute}
	v := &VCPU{vm: vm}
	if !v.gather() {
		t.Error("it waits for nobody, and in vain")
	}
	vm.inside.Store(2)
	left := make(chan bool, 1)
	go func() { left <- v.gather() }()
	vm.inside.Add(-1)
	runtime.Gosched()
	select {
	case <-left:
		t.Fatal("it does not wait for the last")
	default:
	}
	vm.inside.Add(-1)
	if !<-left {
		t.Error("nobody is in the guest, and it does not save itself")
	}

	vm.inside.Store(1)
	vm.gathers = 0
	if v.gather() {
		t.Error("there is no CPU for it, and it does as if nobody were in the guest")
	}
	vm.gathers = 1 // nobody leaves so soon
	for range inVain {
		if v.shot.gathering.rests > 0 {
			t.Error("it has given up")
		}
		if v.gather() {
			t.Error("one is in the guest")
		}
	}
	if v.shot.gathering.rests != rests {
		t.Errorf("after %d times in vain it rests for %d, want %d", inVain, v.shot.gathering.rests, rests)
	}
}
