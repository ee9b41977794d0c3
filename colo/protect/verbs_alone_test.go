package protect

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
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
			parted := make(chan struct{})
			b := w.boot("b", false, nil)
			a := w.boot("a", true, func(c *Config) {
				c.Session.Step = func(_ event.Mode, op string, _ uint64) {
					if op == "send ram while running" {
						<-parted // or the guest is protected before anybody has looked
					}
				}
			})
			a.is(Synchronising)
			w.f.part("a", "b", false)
			close(parted)
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
			said, booted := make(chan error, 1), make(chan struct{})
			b := w.boot("b", false, nil)
			var a *host
			a = w.boot("a", true, func(c *Config) {
				arbiter.Arbiter, c.Arbiter = c.Arbiter, arbiter
				c.Session.Step = func(_ event.Mode, op string, _ uint64) {
					if op == "send ram while running" {
						<-booted
						go func() { said <- verb(context.WithoutCancel(t.Context()), a.job) }()
						<-arbiter.asked
						w.f.part("a", "b", false)
					}
				}
			})
			close(booted)
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
					t.Fatalf("%v; %s: %+v", err, a.states(), a.job.Query())
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

// A guest that has ended is left standing. A first synchronisation that fails then, before the
// session has been told of the verb, is no failure of the job.
func TestCompleteIsObeyedWhereTheFirstSynchronisationFailsAtItsEnd(t *testing.T) {
	s := &session{peer: newPeer(hello{Host: "b"}), purpose: toComplete}
	j := &Job{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, vm: &vm{stands: true}, m: machine{state: Synchronising}, current: s, acts: map[*activity]struct{}{}, changed: make(chan struct{})}
	if err := j.led(t.Context(), s, io.EOF); err != nil || j.State() != Concluded {
		t.Errorf("the job is %v: %v", j.State(), err)
	}
	s.purpose, j.m.state = noPurpose, Synchronising
	if err := j.led(t.Context(), s, io.EOF); err != io.EOF || j.State() != Synchronising {
		t.Errorf("nobody has said that the guest has ended: the job is %v: %v", j.State(), err)
	}
}

// A session ends with the job a moment before the state says so: a verb that comes in between
// has no session, and the job has ended for it.
func TestAVerbBetweenTheEndOfASessionAndThatOfItsJobIsRefused(t *testing.T) {
	verbs := map[string]func(context.Context, *Job) error{
		"switchover": func(ctx context.Context, j *Job) error { return j.Switchover(ctx) },
		"migrate":    func(ctx context.Context, j *Job) error { return j.Migrate(ctx) },
		"failover":   func(_ context.Context, j *Job) error { return j.Failover() },
		"fenced":     func(_ context.Context, j *Job) error { return j.Fenced() },
	}
	for name, verb := range verbs {
		bubble(t, name, func(t *testing.T, w *world) {
			b := w.boot("b", false, nil)
			a := w.boot("a", true, nil)
			a.is(Protected)
			a.job.mu.Lock()
			a.job.current = nil // as between the two, which is too short to come to
			a.job.mu.Unlock()
			said := make(chan error, 1)
			go func() { said <- verb(t.Context(), a.job) }()
			synctest.Wait()
			a.stop(errHalt)
			<-a.done
			var refused *StateError
			if err := <-said; !errors.As(err, &refused) || refused.State != Concluded {
				t.Errorf("%v", err)
			}
			a.leave()
			b.cutOff()
		})
	}
}

// A verb is about the session that it has looked at: one that has begun since is not ended
// half, by the state alone.
func TestAVerbThatLookedAtAnotherSessionLooksAgain(t *testing.T) {
	for verb, at := range map[input]State{doFailover: Following, doFenced: Protected, doSwitchover: Protected} {
		past, now := &session{peer: newPeer(hello{})}, &session{peer: newPeer(hello{})}
		j := &Job{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, m: machine{state: at}, current: past, acts: map[*activity]struct{}{}, changed: make(chan struct{})}
		var looked []*session
		s, err := j.obey(verb, func(s *session) (string, error) {
			looked = append(looked, s)
			if j.State() != at {
				t.Errorf("%v of a session that is over: the job is %v", verb, j.State())
			}
			j.current = now
			return "", nil
		})
		if err != nil || s != now || len(looked) != 2 {
			t.Errorf("%v: looked at %d sessions: %v", verb, len(looked), err)
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

// A host that follows, and has not got the whole guest yet, has none to go on with, whoever orders it to.
func TestAHostWhoseCopyIsNotWholeYetGoesOnByNoOrder(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		looked := make(chan struct{})
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			c.Session.Step = func(_ event.Mode, op string, _ uint64) {
				if op == "send ram while running" {
					<-looked
				}
			}
		})
		a.is(Synchronising)
		b.is(Following)
		for name, order := range map[string]func() error{"failover": b.job.Failover, "fenced": b.job.Fenced} {
			if err := order(); !errors.Is(err, ErrNotWhole) {
				t.Errorf("%s: %v", name, err)
			}
			if st := b.job.State(); st != Following {
				t.Errorf("%s: b is %v", name, st)
			}
		}
		close(looked)
		a.is(Protected)
		w.until(func() bool { return b.job.Query().Stats.Checkpoints > 0 })
		a.kill(false)
		b.is(Alone)
		a.bury()
		b.halt()
	})
}
