//go:build linux && amd64

package kvm

import (
	"testing"
	"time"
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
