//go:build linux && amd64

package kvm

import (
	"fmt"
	"time"
)

// sliceLength is the time of which Throttle takes a share. It is short enough not to disturb
// the timers of a guest, and long compared with the cost of leaving the guest. If a timer
// comes late the slice gets longer, up to longestRest: the rest is a share of the time that
// the vCPU has really run.
const (
	sliceLength = 10 * time.Millisecond
	longestRest = 200 * time.Millisecond
)

// slice is where a vCPU of a throttled VM is in its slice: it runs for a part of it and then
// rests.
type slice struct {
	end   *time.Timer   // kicks the vCPU out of the guest; nil: never used
	armed bool          // end is running, or has run and the vCPU has not rested for it
	due   bool          // the vCPU is to rest; under VM.mu
	since time.Time     // when it entered the guest; zero: it is not there, or not throttled
	ran   time.Duration // how long the vCPU has run in this slice
	until time.Time     // the vCPU rests until then; zero: it does not rest; under VM.mu
	wake  *time.Timer   // has it look whether the rest is over; nil: never used
}

// Throttle keeps every vCPU out of the guest for a share of each slice of about 10 ms, in
// per cent from 0, which ends it, to 99; a guest that writes memory faster than it can
// be copied is slowed down like that. It may be called at any time, also while the VM
// is paused, from any goroutine; a vCPU that rests now ends its rest with the new
// share. Pause does not wait for one that rests, and Stopped does not count the rest.
func (vm *VM) Throttle(percent int) error {
	if percent < 0 || percent > 99 {
		return fmt.Errorf("kvm: throttle by %d %%, want 0 to 99", percent)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrClosed
	}
	vm.throttle.Store(int32(percent))
	for _, v := range vm.vcpus {
		if v.slice.due { // the timer has run, and the vCPU has not looked: the next slice has it run again
			v.slice.due, v.slice.armed = false, false
		}
		v.slice.until = time.Time{}
		v.kick() // it looks around, and begins a slice
	}
	vm.parked.Raise()
	return nil
}

// rests reports whether the vCPU is to stay out of the guest because of Throttle, and begins its
// rest if that is due. vm.mu is held; vm.parked is raised when the rest is over.
func (v *VCPU) rests() bool {
	s := &v.slice
	if percent := time.Duration(v.vm.throttle.Load()); s.due {
		s.due, s.armed = false, false
		rest := min(s.ran*percent/(100-percent), longestRest)
		s.ran = 0
		s.until = time.Now().Add(rest)
		if s.wake == nil {
			s.wake = time.AfterFunc(rest, v.vm.parked.Raise)
		} else {
			s.wake.Reset(rest)
		}
	}
	if s.until.IsZero() {
		return false
	}
	if time.Now().Before(s.until) {
		return true
	}
	s.until = time.Time{}
	return false
}

// left is called when the vCPU has left the guest, and adds the time that it has run. vm.mu is
// held.
func (s *slice) left() {
	if !s.since.IsZero() {
		s.ran += time.Since(s.since)
		s.since = time.Time{}
	}
}

// begins starts the part of a slice in which the vCPU runs. vm.mu is held.
func (v *VCPU) begins() {
	s := &v.slice
	percent := time.Duration(v.vm.throttle.Load())
	if percent == 0 {
		s.ran = 0
		return
	}
	s.since = time.Now()
	if s.armed {
		return
	}
	s.armed = true
	run := sliceLength * (100 - percent) / 100
	if s.end == nil {
		s.end = time.AfterFunc(run, v.sliceEnds)
	} else {
		s.end.Reset(run)
	}
}

// sliceEnds is called by the timer when the vCPU has run for its part of the slice, and sends it
// to rest.
func (v *VCPU) sliceEnds() {
	v.vm.mu.Lock()
	defer v.vm.mu.Unlock()
	if !v.inRun || v.vm.throttle.Load() == 0 {
		v.slice.armed = false
		return
	}
	v.slice.due = true
	v.kick()
}

// stop stops the timers and forgets the slice. vm.mu is held.
func (s *slice) stop() {
	for _, t := range []*time.Timer{s.end, s.wake} {
		if t != nil {
			t.Stop()
		}
	}
	s.armed, s.due, s.ran, s.since, s.until = false, false, 0, time.Time{}, time.Time{}
}
