package protect

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// leavingTo is where a verb of leaving leads.
var leavingTo = map[string]State{"pause": Paused, "cancel": Cancelled, "complete": Concluded}

// A synchronisation that fails leaves the guest alone for a moment before the next one: a verb
// that ends a session has none to end there.
func TestAVerbIsObeyedInThePauseAfterASynchronisation(t *testing.T) {
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			b := w.boot("b", false, nil)
			a := w.boot("a", true, nil)
			a.is(Synchronising)
			w.f.part("a", "b", false)
			a.is(Alone)
			began := time.Now()
			if err := verb(t.Context(), a.job); err != nil {
				t.Fatal(err)
			}
			if s := a.job.State(); s != leavingTo[name] || time.Since(began) > 0 {
				t.Errorf("%v after %v", s, time.Since(began))
			}
			b.cutOff()
			a.endsWith(t, name)
		})
	}
}

// busyArbiter tells when it is asked for another generation, and answers when it may.
type busyArbiter struct {
	failover.Arbiter
	asked, answer chan struct{}
}

func (b *busyArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if c.After > 0 {
		close(b.asked)
		<-b.answer
	}
	return b.Arbiter.Acquire(ctx, c)
}

// So is one that was ending a session, and waits for the arbiter when that ends by itself.
func TestAVerbIsObeyedAfterASessionThatEndsMeanwhile(t *testing.T) {
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			arbiter := &busyArbiter{asked: make(chan struct{}), answer: make(chan struct{})}
			said := make(chan error, 1)
			b := w.boot("b", false, nil)
			var a *host
			a = w.boot("a", true, func(c *Config) {
				arbiter.Arbiter, c.Arbiter = c.Arbiter, arbiter
				c.Session.Step = func(_ event.Mode, op string, _ uint64) {
					if op == "send ram while running" {
						go func() { said <- verb(context.WithoutCancel(t.Context()), a.job) }()
						<-arbiter.asked
						w.f.part("a", "b", false)
					}
				}
			})
			a.is(Alone)
			close(arbiter.answer)
			if err := <-said; err != nil {
				t.Fatal(err)
			}
			if s := a.job.State(); s != leavingTo[name] {
				t.Errorf("the job is %v: %s", s, a.states())
			}
			b.cutOff()
			a.endsWith(t, name)
		})
	}
}

// So is one that finds no session, and one begins before the state has changed.
func TestAVerbEndsASessionThatBeginsMeanwhile(t *testing.T) {
	for name, verb := range leaving {
		bubble(t, name, func(t *testing.T, w *world) {
			rounds := 100
			if testing.Short() {
				rounds = 20
			}
			for range rounds {
				b := w.boot("b", false, nil)
				a := w.boot("a", true, nil)
				a.passed(Alone)
				if err := verb(t.Context(), a.job); err != nil {
					t.Fatal(err)
				}
				if s := a.job.State(); s != leavingTo[name] {
					t.Fatalf("the job is %v: %s", s, a.states())
				}
				b.cutOff()
				a.endsWith(t, name)
				w.clean()
				w.renew()
			}
		})
	}
}

// So a verb that is meant for a session says nothing of the next one, which is in the same state.
func TestAVerbDoesNothingToTheSessionAfterItsOwn(t *testing.T) {
	for _, verb := range []input{doFailover, doFenced, doSwitchover, doMigrate} {
		ended := &session{whole: true, peer: new(peer)}
		j := &Job{changed: make(chan struct{}), current: &session{whole: true, peer: new(peer)}}
		j.m.state = Protected
		if err := j.doIn(ended, verb, ""); err != errMoved || j.State() != Protected {
			t.Errorf("%v: the job is %v; error %v", verb, j.State(), err)
		}
	}
}

// A job that is about to end of a failure has no session, and its state does not say so yet.
func TestAVerbFindsNoSessionInAJobThatIsAboutToEnd(t *testing.T) {
	j := &Job{changed: make(chan struct{})}
	j.m.state = Protected
	j.verbs = make(chan struct{}, 1)
	for name, verb := range map[string]func() error{
		"switchover": func() error { return j.Switchover(t.Context()) },
		"migrate":    func() error { return j.Migrate(t.Context()) },
		"failover":   j.Failover,
		"fenced":     j.Fenced,
	} {
		var wrong *StateError
		if err := verb(); !errors.As(err, &wrong) && !errors.Is(err, ErrNotWhole) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// endsWith waits for a job that Complete has ended, or ends it.
func (h *host) endsWith(t *testing.T, verb string) {
	t.Helper()
	if verb != "complete" {
		h.halt()
		return
	}
	<-h.done
	if h.err != nil {
		t.Errorf("Run: %v", h.err)
	}
	h.leave()
}

// cutOff ends a host whose memory may be that of a synchronisation that was cut off.
func (h *host) cutOff() {
	h.stop(errHalt)
	<-h.done
	h.leave()
}
