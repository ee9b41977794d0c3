//go:build linux && amd64

package kvm

import (
	"errors"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// A clock that is to go on later does so by the time that has passed since it was saved, also where KVM does not
// add it up by itself.
func TestAClockThatIsRestoredLaterHasTheTimeBetween(t *testing.T) {
	vm, _, _ := adoptedHere(t)
	if !vm.sys.clock {
		t.Skip("this KVM has no clock to set")
	}
	for name, restore := range map[string]func(*ClockState, int) error{
		"RestoreLater":         (*ClockState).RestoreLater,
		"without the realtime": func(s *ClockState, vm int) error { return s.restore(vm, false) },
	} {
		var s, now ClockState
		if err := s.Save(vm.fd); err != nil {
			t.Fatal(err)
		}
		was := s.data.Clock
		s.wall -= int64(time.Hour)
		if err := restore(&s, vm.fd); err != nil {
			t.Fatal(err)
		}
		if err := now.Save(vm.fd); err != nil {
			t.Fatal(err)
		}
		if got := time.Duration(now.data.Clock - was); got < time.Hour-time.Minute {
			t.Errorf("%s: %v later, want an hour", name, got)
		}
	}
}

// A TSC that is to be later than it was saved is set so. A KVM that does not set it is told the later one.
func TestATSCThatIsAdvancedIsLater(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	was, ok := s.savedMSR(msrTSC)
	if !ok || s.tscKHz == 0 {
		t.Skip("this KVM tells no TSC, or not how fast it is")
	}
	s.tsc = tsc{attr: s.tsc.attr}
	s.Advance(time.Hour)
	if err := v.restore(); err != nil {
		t.Fatal(err)
	}
	now, _, err := s.readMSR(v.fd, msrTSC)
	if err != nil {
		t.Fatal(err)
	}
	if e := s.TSCError(); e != nil {
		now = e.Want
	}
	if later := now - was; later < uint64((time.Hour-time.Minute).Milliseconds())*uint64(s.tscKHz) {
		t.Errorf("%d cycles later, of %d kHz, want an hour's", later, s.tscKHz)
	}
}

// How far a channel of the timer had come is not kept: where that changes the comment of the package does too. KVM
// tells it of the second channel, by when that was loaded, and not of the one that interrupts.
func TestTheTimerCountsAnewWhenItIsRestored(t *testing.T) {
	_, v, _ := states(t)
	vm := v.vm
	if !vm.chips.hasPIT {
		t.Skip("no timer in the kernel")
	}
	const once, speaker = 0, 2
	set := func(p *gokvm.PITState2) {
		p.Channels[speaker] = gokvm.PITChannelState{Count: 0xffff, RWMode: 3, Mode: once, Gate: 1}
		if _, err := ioctl(vm.fd, "KVM_SET_PIT2", kvmSetPIT2, unsafe.Pointer(p)); err != nil {
			t.Fatal(err)
		}
	}
	set(&vm.chips.pit)
	if err := vm.chips.Save(vm.fd); err != nil {
		t.Fatal(err)
	}
	loaded := vm.chips.pit.Channels[speaker].CountLoadTime
	var now unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now), vm.chips.Restore(vm.fd), vm.chips.Save(vm.fd)); err != nil {
		t.Fatal(err)
	}
	if again := vm.chips.pit.Channels[speaker].CountLoadTime; again == loaded || again < now.Nano() {
		t.Errorf("the channel was loaded at %d, then at %d, restored at %d", loaded, again, now.Nano())
	}
}
