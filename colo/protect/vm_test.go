package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/vmstate"
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

// A witness is a guest, and a network, that notes what it is called for, and calls the vm then.
type witness struct {
	Network
	Guest
	t     *testing.T
	v     *vm
	calls []string
	fails error  // of Pause
	input func() // called by Input; may be nil
}

func (w *witness) note(call string) {
	if !w.v.mu.TryLock() {
		w.t.Fatalf("%s is called under the lock of the vm", call)
	}
	w.v.mu.Unlock()
	w.v.keep(nil)
	w.v.isRunning()
	w.calls = append(w.calls, call)
}

func (w *witness) Register(*vmstate.Registry) error { return nil }
func (w *witness) Pause(context.Context) error      { w.note("pause"); return w.fails }
func (w *witness) Resume(context.Context) error     { w.note("resume"); return nil }
func (w *witness) Throttle(int) error               { w.note("throttle"); return nil }
func (w *witness) Stopped() time.Duration           { w.note("stopped"); return 0 }
func (w *witness) Runs(on bool)                     { w.note(fmt.Sprint("runs ", on)) }

func (w *witness) Input(on bool) {
	w.note(fmt.Sprint("input ", on))
	if w.input != nil {
		w.input()
	}
}

// The rest of a Sided.
func (w *witness) Link() (name, terms string)      { return "", "" }
func (w *witness) Lead(context.Context) error      { return nil }
func (w *witness) Follow(context.Context) error    { return nil }
func (w *witness) Serve(context.Context, net.Conn) {}

// said returns what has been called since the last call of it.
func (w *witness) said() string {
	all := strings.Join(w.calls, ", ")
	w.calls = nil
	return all
}

func newWitness(t *testing.T) *witness {
	w := &witness{t: t}
	w.v = newVM(w, []Network{w}, nil)
	return w
}

// A guest has no input from before its pause to after it, and what calls the vm from a method of
// the host's finds it free.
func TestTheNetworksOfAGuestAreToldInOrderAndUnderNoLock(t *testing.T) {
	w := newWitness(t)
	failed := errors.New("a vCPU does not come back")
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { w.v.face(true); return nil }, "input false"},
		{func() error { return w.v.Resume(t.Context()) }, "resume, runs true, input true"},
		{func() error { return w.v.Pause(t.Context()) }, "input false, runs false, pause"},
		{func() error { return w.v.Pause(t.Context()) }, ""},
		{func() error { w.v.face(false); return nil }, "input false"},
		{func() error { return w.v.Resume(t.Context()) }, ""},
		{func() error { return w.v.Resume(t.Context()) }, "resume, runs true, input false"},
		{func() error { w.v.face(true); return nil }, "input true"},
		{func() error { w.fails = failed; return w.v.Pause(t.Context()) }, "input false, runs false, pause, runs true, input true"},
		{func() error { w.v.Stopped(); return w.v.Throttle(1) }, "stopped, throttle"},
	} {
		if err := step.do(); err != w.fails && err != nil {
			t.Error(err)
		}
		if step.want == "stopped, throttle" {
			w.fails = nil
		}
		if got := w.said(); got != step.want {
			t.Errorf("%q, not %q", got, step.want)
		}
	}
	w.input = func() { w.input = nil; w.v.face(false) }
	w.v.face(true)
	if got := w.said(); got != "input true, input false" {
		t.Errorf("%q, where Input(true) has the world talk to another", got)
	}
}

// A network that does not come back from Input keeps nobody waiting but a pause, which its context
// ends, and hears of what has changed when it comes back.
func TestANetworkThatDoesNotComeBackKeepsNobodyWaitingButAPause(t *testing.T) {
	w := newWitness(t)
	if err := w.v.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.said()
	called, let, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	w.input = func() { w.input = nil; close(called); <-let }
	go func() {
		defer close(done)
		w.v.face(true)
	}()
	<-called
	given, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.v.Pause(given); !errors.Is(err, context.Canceled) || !w.v.isRunning() {
		t.Errorf("a pause that was given up: %v", err)
	}
	w.v.face(false)
	w.v.keep(nil)
	close(let)
	<-done
	if got := w.said(); got != "input true, input false" {
		t.Errorf("%q", got)
	}
	if err := w.v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.said(); got != "input false, runs false, pause" {
		t.Errorf("%q", got)
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
