package protect

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

func TestPauseLetsTheGuestRunUnprotectedUntilResume(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = time.Millisecond // its frames are counted
		a, b := w.protected()
		for range 3 {
			if err := a.job.Pause(t.Context(), "backup"); err != nil {
				t.Fatal(err)
			}
			b.is(Waiting)
			if q := a.job.Query(); q.State != Paused || q.Reason != "backup" || !q.Open {
				t.Errorf("%+v", q)
			}
			checkpoints, before := a.job.Query().Stats.Checkpoints, w.heard()
			time.Sleep(10 * time.Second)
			if n := w.heard() - before; n < 9000 {
				t.Errorf("%d frames in 10 s: the output does not pass", n)
			}
			if n := a.job.Query().Stats.Checkpoints; n != checkpoints {
				t.Error("checkpoints are made")
			}
			if a.job.State() != Paused || b.job.State() != Waiting {
				t.Errorf("%v, %v", a.job.State(), b.job.State())
			}
			if err := a.job.Resume(); err != nil {
				t.Fatal(err)
			}
			a.is(Protected)
			b.is(Following)
		}
		// While nobody is there it is a matter of this host alone.
		b.halt()
		a.is(Alone)
		if err := a.job.Pause(t.Context(), "no need"); err != nil || a.job.State() != Paused {
			t.Error(err)
		}
		a.halt()
	})
}

// A secondary that was left behind by a pause is never granted the guest, even if
// the primary dies then: its copy is old.
func TestPausedPrimaryThatDiesTakesTheGuestWithIt(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		if err := a.job.Pause(t.Context(), "backup"); err != nil {
			t.Fatal(err)
		}
		a.kill(false)
		a.bury()
		time.Sleep(time.Minute)
		if b.job.State() != Waiting {
			t.Errorf("b is %v", b.job.State())
		}
		b.halt()
	})
}

func TestPauseThatCannotAskTheArbiterChangesNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.noArbiter.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.job.Pause(ctx, "backup"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNoRoute) {
			t.Errorf("%v, want the deadline and why", err)
		}
		if a.job.State() != Protected || b.job.State() != Following {
			t.Errorf("%v, %v", a.job.State(), b.job.State())
		}
		a.noArbiter.Store(false)
		b.halt()
		a.halt()
	})
}

func TestCompleteEndsTheGuestOnBothHosts(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(time.Second)
		if err := a.job.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-a.done
		if a.err != nil || !a.guest.Paused() {
			t.Errorf("Run: %v", a.err)
		}
		a.leave()
		time.Sleep(time.Minute)
		if b.job.State() != Waiting {
			t.Errorf("b is %v", b.job.State())
		}
		if r, _ := w.store.Load(t.Context()); r.Held() || r.Generation != 2 {
			t.Errorf("%+v", r)
		}
		b.halt()
	})
}

// What the primary says last may come later than the end of its other connections:
// where nobody refuses it, the secondary must not go on because of these.
func TestAGuestThatHasEndedDoesNotGoOnWhereThatIsHeardLate(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var delay atomic.Int64
		w.f.ways = newWays(w.newest, func() time.Duration { return time.Duration(delay.Load()) })
		alone := new(failovertest.Store) // b's own, where nobody else has a say
		if ok, err := alone.Swap(t.Context(), failover.Record{}, failover.Record{Generation: 1}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		b := w.boot("b", false, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(alone) })
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		delay.Store(int64(3 * DefaultBeat))
		if err := a.job.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-a.done
		a.leave()
		time.Sleep(time.Minute)
		if s := b.states(); strings.Contains(s, Alone.String()) || b.job.State() != Waiting {
			t.Errorf("a: %s, b: %s", a.states(), s)
		}
		if err := b.job.Query().LastError; !errors.Is(err, ErrCompleted) {
			t.Errorf("b: %v", err)
		}
		b.halt()
	})
}

func TestFailoverOnThePrimaryGoesOnAlone(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		alone := a.passes(Alone) // b lives, and may follow again at once
		if err := a.job.Failover(); err != nil {
			t.Fatal(err)
		}
		<-alone
		a.is(Protected)
		b.is(Following)
		if g := a.job.Query().Generation; g != 2 {
			t.Errorf("generation %d", g)
		}
		b.halt()
		a.halt()
	})
}

// The present holder is preferred: a claim against a primary that lives fails.
func TestFailoverOnTheSecondaryOfALivePrimaryIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		alone, waiting := a.passes(Alone), b.passes(Waiting) // for a moment
		begin := time.Now()
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		<-alone
		if d := time.Since(begin); d >= w.term/2 { // the guest did not stand still for it
			t.Errorf("it took %v", d)
		}
		<-waiting
		if q := b.job.Query(); !errors.Is(q.LastError, failover.ErrRefused) {
			t.Errorf("%v", q.LastError)
		}
		a.is(Protected)
		b.is(Following)
		b.halt()
		a.halt()
	})
}

func TestOperatorDecidesWithoutAnArbiter(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		none := func(c *Config) { c.Arbiter = nil }
		b := w.boot("b", false, none)
		a := w.boot("a", true, none)
		a.is(Protected)
		time.Sleep(time.Second)
		a.kill(true)
		a.bury()
		time.Sleep(time.Hour)
		if b.job.State() != Asking {
			t.Fatalf("b is %v", b.job.State())
		}
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		a = w.boot("a", false, none)
		b.is(Protected)
		if err := b.job.Pause(t.Context(), "maintenance"); err != nil {
			t.Fatal(err)
		}
		if err := b.job.Resume(); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		a.halt() // a secondary that leaves in good order says so
		b.is(Alone)
		a = w.boot("a", false, none)
		b.is(Protected)
		a.kill(false)
		a.bury()
		b.is(Asking) // but the primary that has lost its secondary asks too
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		b.halt()
	})
}

func TestFencedGoesOnAtOnceAndTellsTheArbiterLater(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.noArbiter.Store(true)
		b.noArbiter.Store(true)
		a.kill(true)
		a.bury()
		b.is(Asking)
		before := w.heard()
		if err := b.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		time.Sleep(10 * time.Second)
		if !b.job.Gate().Open() || w.heard() == before {
			t.Error("nothing leaves")
		}
		b.noArbiter.Store(false)
		time.Sleep(10 * time.Second)
		if r, _ := w.store.Load(t.Context()); r.Holder != "b" || r.Generation != 2 || !b.job.Gate().Open() {
			t.Errorf("%+v", r)
		}
		b.halt()
	})
}

// An operator's word that was wrong: the other host has gone on meanwhile. The one
// that was told gives up as soon as it hears of it. (The client is not asked here:
// two guests did run.)
func TestFencedThatWasWrongGivesUp(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		b.noArbiter.Store(true)
		w.f.part("a", "b", false)
		a.is(Alone)
		a.killed.Store(true) // the client hears only b from now on
		if err := b.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		a.killed.Store(false)
		a.nicGone()
		b.noArbiter.Store(false)
		b.is(Waiting)
		if b.job.Gate().Open() {
			t.Error("the gate of the one that was wrong is open")
		}
		a.stop(errDead)
		a.bury()
		b.halt()
		w.forget()
	})
}

func TestVerbsAreRefusedInWordsElsewhere(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		for name, verb := range map[string]func() error{
			"pause":      func() error { return b.job.Pause(t.Context(), "") },
			"resume":     b.job.Resume,
			"complete":   func() error { return b.job.Complete(t.Context()) },
			"checkpoint": b.job.Checkpoint,
			"failover":   b.job.Failover,
			"fenced":     b.job.Fenced,
			"switchover": func() error { return b.job.Switchover(t.Context()) },
			"migrate":    func() error { return b.job.Migrate(t.Context()) },
			"cancel":     func() error { return b.job.Cancel(t.Context()) },
		} {
			var se *StateError
			if err := verb(); !errors.As(err, &se) || se.Verb != name || se.State != Waiting {
				t.Errorf("%s: %v", name, err)
			}
		}
		b.halt()
	})
}

func TestCheckpointIsMadeWhenAskedFor(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		slow := func(c *Config) { c.CheckpointDelay = time.Hour; c.PeerTimeout = 10 * time.Second }
		b := w.boot("b", false, slow)
		a := w.boot("a", true, slow)
		a.is(Protected)
		time.Sleep(time.Second)
		before := a.job.Query().Stats.Checkpoints
		if err := a.job.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := a.job.Query().Stats.Checkpoints; n != before+1 {
			t.Errorf("%d checkpoints", n-before)
		}
		b.halt()
		a.halt()
	})
}

func (h *host) ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// nicGone keeps what a host says from the client, for tests in which two guests
// run.
func (h *host) nicGone() { h.killed.Store(true) }

// forget makes the client forget what it heard.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, err := colotest.NewOracle(w.guest)
	if err != nil {
		w.t.Fatal(err)
	}
	w.oracle = o
}

// renew makes a world in which nothing has happened.
func (w *world) renew() {
	w.forget()
	w.store = newWorld(w.t).store
	w.f = newFabric()
	w.ledger = colotest.Ledger{}
}
