package protect

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// still is a Guest of which only the pauses work.
type still struct{ Guest }

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }

// able is one that can be throttled, and measures its pauses.
type able struct {
	still
	percent int
}

func (a *able) Throttle(percent int) error { a.percent = percent; return nil }
func (a *able) Stopped() time.Duration     { return 7 * time.Millisecond }

func TestASessionReachesWhatTheGuestCanBesides(t *testing.T) {
	guest := new(able)
	v := newVM(guest, nil, nil)
	var (
		throttler colo.Throttler = v
		stopper   colo.Stopper   = v
	)
	if err := throttler.Throttle(30); err != nil || guest.percent != 30 {
		t.Errorf("throttled by %d, error %v", guest.percent, err)
	}
	v.keep(func() {})
	if err := v.Resume(t.Context()); err != nil || stopper.Stopped() != 0 {
		t.Errorf("a guest that was left standing has ended a pause of %v; error %v", stopper.Stopped(), err)
	}
	v.keep(nil)
	if err := v.Resume(t.Context()); err != nil || stopper.Stopped() != 7*time.Millisecond {
		t.Errorf("stood still for %v, error %v", stopper.Stopped(), err)
	}

	v = newVM(still{}, nil, nil)
	if err := v.Throttle(30); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("throttled a guest that cannot be: %v", err)
	}
	if err := v.Resume(t.Context()); err != nil || v.Stopped() != 0 {
		t.Errorf("stood still for %v, as nobody has measured; error %v", v.Stopped(), err)
	}
}

// slow is a Guest whose pause lasts until it is let.
type slow struct {
	still
	pausing, let chan struct{}
}

func (s slow) Pause(context.Context) error {
	close(s.pausing)
	<-s.let
	return nil
}

// switched is a Network of which only the input works.
type switched struct {
	Network
	on bool
}

func (s *switched) Input(on bool) { s.on = on }

// A vCPU may wait for its disk while it is being paused. Who asks for something else
// meanwhile does not wait with it.
func TestNobodyWaitsForAPauseThatIsUnderWayButAnotherPause(t *testing.T) {
	guest, nic := slow{pausing: make(chan struct{}), let: make(chan struct{})}, &switched{}
	v := newVM(guest, []Network{nic}, nil)
	if err := v.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.face(true)
	if !nic.on {
		t.Fatal("no input, though the guest runs")
	}
	paused := make(chan error, 1)
	go func() { paused <- v.Pause(t.Context()) }()
	<-guest.pausing
	v.face(true)
	if nic.on {
		t.Error("input, while the guest is being paused")
	}
	v.keep(nil)
	if !v.isRunning() {
		t.Error("it does not run any more, though its pause has not ended")
	}
	given, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Pause(given); !errors.Is(err, context.Canceled) {
		t.Errorf("a second pause, given up: %v", err)
	}
	close(guest.let)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if v.isRunning() || nic.on {
		t.Error("it runs on")
	}
}

func TestAGuestThatWasLeftStandingIsResumedOnce(t *testing.T) {
	guest := &counting{}
	v := newVM(guest, nil, nil)
	v.keep(func() {})
	if err := v.Resume(t.Context()); err != nil || guest.resumed != 0 || v.isRunning() {
		t.Fatalf("resumed %d times, error %v; it was to be left standing", guest.resumed, err)
	}
	v.keep(nil)
	for range 2 {
		if err := v.runOn(t.Context()); err != nil || guest.resumed != 1 || !v.isRunning() {
			t.Errorf("resumed %d times, error %v", guest.resumed, err)
		}
	}
	// A session's pause is the session's to take back.
	if err := v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.runOn(t.Context()); err != nil || v.isRunning() {
		t.Errorf("the pause of a session was taken back; error %v", err)
	}
}

type counting struct {
	still
	resumed int
}

func (c *counting) Resume(context.Context) error { c.resumed++; return nil }

// The session of a switchover may be over before it has begun. Its guest is not to
// stand still in the session that follows.
func TestASwitchoverThatIsOverLeavesNoGuestStanding(t *testing.T) {
	for state := range Concluded + 1 {
		j := &Job{vm: newVM(still{}, nil, nil)}
		j.m.state = state
		err := j.keep(func() {})
		var wrong *StateError
		if held := j.vm.hold != nil; held != (state == SwitchingOver) || held != (err == nil) || err != nil && !errors.As(err, &wrong) {
			t.Errorf("%v: the guest is left standing: %t; error %v", state, held, err)
		}
	}
}
