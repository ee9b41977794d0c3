//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Of vCPUs that stood still together the longest time counts, and it is told when the last of them goes on.
func TestStoppedIsToldWhenTheLastVCPUGoesOn(t *testing.T) {
	vm := &VM{}
	var list []*VCPU
	for i := range 2 {
		v := &VCPU{vm: vm}
		v.stop.entered, v.stop.noticed = true, time.Now().Add(-time.Duration(2-i)*time.Hour)
		v.stopBegins()
		list = append(list, v)
	}
	list[0].stopEnds()
	if got := vm.Stopped(); got != 0 {
		t.Errorf("one of two goes on: %v", got)
	}
	list[1].stopEnds()
	if got := vm.Stopped(); got < 2*time.Hour {
		t.Errorf("both go on: %v, want two hours", got)
	}
}

// A vCPU whose Run begins in a pause was not taken out of the guest for it, whatever came before.
func TestAVCPUWhoseRunBeginsInAPauseDidNotStopForIt(t *testing.T) {
	vm := &VM{pauses: 1}
	v := &VCPU{vm: vm}
	v.stop.entered = true // in a Run that has ended
	if err := v.begin(); err != nil {
		t.Fatal(err)
	}
	v.stopBegins()
	if n := vm.stops.out.Load(); n != 0 {
		t.Errorf("%d vCPUs count as stopped", n)
	}
}

// A guest that has been told of the time in which it stood still is not told of the same time again.
func TestAGuestIsToldOnceOfATime(t *testing.T) {
	vm, vcpu, run := adoptedHere(t)
	v, err := vm.AddVCPU(uintptr(vcpu), run)
	if err != nil {
		t.Fatal(err)
	}
	vm.sys.clockCtrl = true
	v.stop.unsaid = untold
	v.tellGuest()
	if v.stop.unsaid != 0 {
		t.Errorf("%v are still to be told", v.stop.unsaid)
	}
	// The telling costs a call: a guest that is stopped for short times is not told of each.
	v.stop.unsaid = untold - 1
	v.tellGuest()
	if v.stop.unsaid != untold-1 {
		t.Errorf("%v are still to be told, of %v", v.stop.unsaid, untold-1)
	}
	v.stop.unsaid, v.stop.since = 1, time.Now().Add(-time.Hour) // it is on its way back from a long stop
	v.tellGuest()
	if v.stop.unsaid != 0 || !v.stop.since.IsZero() {
		t.Errorf("%v are still to be told, of an hour", v.stop.unsaid)
	}
}

// The rest of a throttled vCPU does not count as a stop, also where it begins at the end of a pause.
func TestARestIsNoStop(t *testing.T) {
	vm := &VM{}
	v := &VCPU{vm: vm, data: new(RunData), inRun: true}
	v.stop.entered, v.stop.noticed = true, time.Now().Add(-time.Hour)
	v.stopBegins()
	v.slice.until = time.Now().Add(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	parked := make(chan error, 1)
	go func() { parked <- v.park(ctx) }()
	for end := time.Now().Add(10 * time.Second); vm.Stopped() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := vm.Stopped(); got < time.Hour || got > 2*time.Hour {
		t.Errorf("while it rests it is said to have stood still for %v, want an hour", got)
	}
	cancel()
	vm.parked.Raise()
	if err := <-parked; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A vCPU whose Run has ended counts as in the guest no more, however it ended: while one counts, no other
// saves its state on its way into a pause.
func TestAVCPUWhoseRunHasEndedIsNotInTheGuest(t *testing.T) {
	vm := &VM{}
	v := &VCPU{vm: vm, inRun: true}
	v.stop.inside = true
	vm.inside.Add(1)
	v.end()
	if n := vm.inside.Load(); n != 0 || v.stop.inside {
		t.Errorf("%d vCPUs count as in the guest", n)
	}
}
