package protect

import (
	"errors"
	"sync"
	"testing"
	"time"
)

func TestCancelEndsTheProtectionAndTheGuestRunsOn(t *testing.T) {
	for _, from := range []State{Alone, Protected, Paused} {
		bubble(t, "while "+from.String(), func(t *testing.T, w *world) {
			w.guest.Interval = time.Millisecond // its frames are counted
			var b *host
			a := w.boot("a", true, nil)
			a.is(Alone)
			if from != Alone {
				b = w.boot("b", false, nil)
				a.is(Protected)
			}
			if from == Paused {
				if err := a.job.Pause(t.Context(), "first"); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.job.Cancel(t.Context()); err != nil {
				t.Fatal(err)
			}
			if from == Alone {
				b = w.boot("b", false, nil)
			}
			before := w.heard()
			time.Sleep(5 * time.Second)
			if n := w.heard() - before; n < 4500 {
				t.Errorf("%d frames in 5 s", n)
			}
			if s := b.job.State(); s != Waiting {
				t.Errorf("the other host is %v", s)
			}
			q := a.job.Query()
			if q.State != Cancelled || q.State.JobStatus() != "concluded" || !q.Open || q.Reason != "cancelled" {
				t.Errorf("%+v", q)
			}
			if err := a.job.Resume(); err == nil {
				t.Error("what was cancelled has been resumed")
			}
			if err := a.job.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-a.done
			if a.err != nil {
				t.Error(a.err)
			}
			a.leave()
			b.halt()
		})
	}
}

// A secondary that a cancelled primary has left behind does not go on when that dies.
func TestACancelledGuestIsNotTakenOver(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		if err := a.job.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.kill(true)
		a.bury()
		time.Sleep(time.Minute)
		if s := b.job.State(); s != Waiting {
			t.Errorf("the other host is %v", s)
		}
		b.halt()
	})
}

func TestMigrateMovesTheGuestAndEndsTheProtection(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = time.Millisecond // its frames are counted
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		if err := a.job.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-a.done
		if a.err != nil || !a.guest.Paused() {
			t.Errorf("Run: %v", a.err)
		}
		q := a.job.Query()
		if q.State != Concluded || q.Reason != "migrated to b" || q.Stats.Switchovers != 1 {
			t.Errorf("%+v", q)
		}
		a.leave()
		b.is(Paused)
		before := w.heard()
		time.Sleep(time.Second)
		if n := w.heard() - before; n < 900 {
			t.Errorf("%d frames in 1 s", n)
		}
		if q := b.job.Query(); q.State != Paused || q.Reason != "migrated from a" {
			t.Errorf("%+v", q)
		}
		a = w.boot("a", false, nil)
		if err := b.job.Resume(); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		a.is(Following)
		a.halt()
		b.halt()
	})
}

// Whatever happens in a migration, the guest runs on one of the hosts afterwards.
func TestAMigrationThatFailsLeavesTheGuestRunning(t *testing.T) {
	moments := []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 101 * time.Millisecond}
	if testing.Short() {
		moments = []time.Duration{5 * time.Millisecond}
	}
	for name, fault := range map[string]func(w *world, a, b *host){
		"the link breaks":      func(w *world, a, b *host) { w.f.part("a", "b", false) },
		"the link goes silent": func(w *world, a, b *host) { w.f.part("a", "b", true) },
		"no arbiter for a":     func(w *world, a, b *host) { a.noArbiter.Store(true) },
		"no arbiter for b":     func(w *world, a, b *host) { b.noArbiter.Store(true) },
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			for _, after := range moments {
				a, b := w.protected()
				time.Sleep(250 * time.Millisecond)
				var group sync.WaitGroup
				group.Go(func() { a.job.Migrate(t.Context()) })
				time.Sleep(after)
				fault(w, a, b)
				time.Sleep(3 * time.Second)
				w.f.join("a", "b")
				a.noArbiter.Store(false)
				b.noArbiter.Store(false)
				group.Wait()
				time.Sleep(5 * time.Second)
				before := w.heard()
				time.Sleep(time.Second)
				if w.heard() == before || a.job.State().runs() == b.job.State().runs() {
					t.Errorf("after %v: %v on a, %v on b, %d frames", after, a.job.State(), b.job.State(), w.heard()-before)
				}
				if !a.ended() {
					a.halt()
				} else {
					a.leave()
				}
				b.halt()
				w.clean()
				w.renew()
			}
		})
	}
}

func TestTheCheckpointDelayIsSetWhileAPairIsInStepAndStays(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		count := func(d time.Duration) uint64 {
			before := a.job.Query().Stats.Checkpoints
			time.Sleep(d)
			return a.job.Query().Stats.Checkpoints - before
		}
		if err := a.job.SetDelay(time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := count(5 * time.Second); n < 4 || n > 6 {
			t.Errorf("%d checkpoints in 5 s", n)
		}
		alone := a.passes(Alone)                 // b lives, and may follow again at once
		if err := a.job.Failover(); err != nil { // another session
			t.Fatal(err)
		}
		<-alone
		a.is(Protected)
		time.Sleep(time.Second)
		if n := count(5 * time.Second); n < 4 || n > 6 {
			t.Errorf("%d checkpoints in 5 s of the next session", n)
		}
		if err := a.job.SetDelay(0); err == nil {
			t.Error("no delay at all")
		}
		b.halt()
		a.halt()
		var se *StateError
		if err := a.job.SetDelay(time.Second); !errors.As(err, &se) {
			t.Errorf("after the end: %v", err)
		}
	})
}
