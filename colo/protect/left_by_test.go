package protect

import (
	"context"
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/vmstate"
)

// A question ends the session of a secondary without an arbiter only if it comes from the primary of
// that very session, which has lost it.
func TestOnlyThePrimaryOfASessionLeavesItByAQuestion(t *testing.T) {
	ours := hello{Channel: chAsk, Host: "a", Token: "of this session", Generation: 3}
	manual := failover.NewManual(failover.Record{})
	for name, c := range map[string]struct {
		change func(*Job, *hello)
		left   bool
	}{
		"its primary":                     {func(*Job, *hello) {}, true},
		"another host":                    {func(_ *Job, h *hello) { h.Host = "c" }, false},
		"its primary, of another session": {func(_ *Job, h *hello) { h.Token = "of another" }, false},
		"one that asks about no session":  {func(_ *Job, h *hello) { h.Token = "" }, false},
		"its primary, with an arbiter":    {func(j *Job, _ *hello) { j.manual = nil }, false},
		"its secondary":                   {func(j *Job, _ *hello) { j.current.primary = new(colo.Primary) }, false},
		"one between two sessions":        {func(j *Job, _ *hello) { j.current = nil }, false},
	} {
		j := &Job{manual: manual, current: &session{peer: newPeer(hello{Host: "a", Token: "of this session", Generation: 3})}}
		h := ours
		c.change(j, &h)
		if got := j.leftBy(h); (got != nil) != c.left {
			t.Errorf("%s: left is %v", name, got != nil)
		}
	}
	j := &Job{manual: manual, current: &session{peer: newPeer(hello{Host: "a"})}}
	if j.leftBy(hello{Channel: chAsk, Host: "a"}) != nil {
		t.Error("a session without a token is left by a question without one")
	}
}

// Only where it is to be settled who goes on does it matter that somebody has.
func TestAHelloOfALaterGenerationEndsNoSessionThatIsWell(t *testing.T) {
	for state, ends := range map[State]bool{Following: false, Asking: true, TakingOver: false} {
		j := &Job{current: &session{peer: newPeer(hello{Host: "a", Generation: 3})}}
		j.m.state = state
		j.overtook(hello{Channel: chControl, Host: "a", Generation: 4})
		if got := j.current.peer.endedWhy() != nil; got != ends {
			t.Errorf("while %v: ended is %v", state, got)
		}
	}
}

// The memory could not be read while the devices were about to be those of the file: they may have
// seen zeros, and the guest must not run.
func TestDevicesOfASavedGuestAreNotCommittedWhenItsMemoryIsNotThere(t *testing.T) {
	why := errors.New("the file is gone")
	s := &Saved{reg: new(vmstate.Registry), err: why}
	if err := s.commit(); !errors.Is(err, why) || s.committed {
		t.Errorf("%v, committed is %v", err, s.committed)
	}
	s = &Saved{reg: new(vmstate.Registry)}
	if err := s.commit(); err != nil || !s.committed {
		t.Errorf("%v, committed is %v", err, s.committed)
	}
}

// A file of a guest that is another host's by now would be a second copy that goes on.
func TestAGuestIsNotSavedByAHostThatMayNotHaveItAnyMore(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		w.hearsMore()
		err := a.job.Save(context.Background(), &failing{left: 100, then: func() error {
			a.job.keeper.Drop()
			return nil
		}})
		if err == nil || a.job.State() != Alone || a.job.Gate().Open() {
			t.Errorf("%v; it is %v, its gate is open: %v", err, a.job.State(), a.job.Gate().Open())
		}
		a.halt()
	})
}
