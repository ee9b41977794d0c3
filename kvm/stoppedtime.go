//go:build linux && amd64

package kvm

import (
	"sync/atomic"
	"time"
)

// stops measures how long the vCPUs are out of the guest for a pause.
type stops struct {
	out     atomic.Int32 // vCPUs that a pause has stopped and that are not back
	longest atomic.Int64 // the longest time of the vCPUs that were out together
	last    atomic.Int64
}

// stop is what a vCPU keeps of its own stop; stops has all of them together. It belongs to the
// goroutine in Run.
type stop struct {
	entered bool          // it has been in the guest in this Run
	inside  bool          // it counts in VM.inside
	noticed time.Time     // when it saw that it was to leave the guest
	since   time.Time     // since when it is out for a pause; zero: it is not
	unsaid  time.Duration // time out of the guest of which the guest has not been told
}

// Stopped returns how long the guest stood still in the last pause that is over for
// every vCPU: from when a vCPU saw that it was to leave the guest until it entered it
// again, for the vCPU for which that was longest. It is 0 before the first pause that
// took a vCPU out of the guest. Pauses in such quick succession that a vCPU did not
// enter the guest between them are one. It may be called from any goroutine and costs
// a load.
func (vm *VM) Stopped() time.Duration { return time.Duration(vm.stops.last.Load()) }

// stopBegins counts the vCPU as stopped for a pause.
func (v *VCPU) stopBegins() {
	if v.stop.entered && v.stop.since.IsZero() {
		if v.stop.since = v.stop.noticed; v.stop.since.IsZero() { // it rested
			v.stop.since = time.Now()
		}
		v.vm.stops.out.Add(1)
	}
}

// stopEnds ends the stop of a vCPU, if there is one, and counts it. It is called when the vCPU
// enters the guest, rests because of Throttle, or leaves Run.
func (v *VCPU) stopEnds() {
	v.stop.noticed = time.Time{}
	if v.stop.since.IsZero() {
		return
	}
	took := time.Since(v.stop.since)
	v.stop.since = time.Time{}
	v.stop.unsaid += took
	s := &v.vm.stops
	for {
		old := s.longest.Load()
		if old >= int64(took) || s.longest.CompareAndSwap(old, int64(took)) {
			break
		}
	}
	if s.out.Add(-1) == 0 {
		s.last.Store(s.longest.Swap(0))
	}
}

// untold is how much time out of the guest may add up before the guest is told. It is far
// below the seconds after which a guest takes a vCPU for stuck, and long enough that a guest
// which is paused a thousand times a second is told only now and then.
const untold = 10 * time.Millisecond

// tellGuest makes the guest's clock say that the vCPU was stopped by its host, so that
// its watchdogs do not take it for stuck. It fails where the guest does not use the
// clock, which then has nothing to say. (KVM api, "KVM_KVMCLOCK_CTRL".) It is called
// before the vCPU enters the guest.
func (v *VCPU) tellGuest() {
	unsaid := v.stop.unsaid
	if !v.stop.since.IsZero() {
		unsaid += time.Since(v.stop.since)
	}
	if unsaid < untold || !v.vm.sys.clockCtrl {
		return
	}
	_, _ = ioctlValue(v.fd, "KVM_KVMCLOCK_CTRL", kvmKVMClockCtrl, 0)
	v.stopEnds()
	v.stop.unsaid = 0
}
