package protect

import (
	"regexp"
	"testing"
	"testing/synctest"
	"time"
)

func TestTwoHostsProtectAGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.guest.Interval = time.Millisecond // its frames are counted
		a, b := w.protected()
		time.Sleep(3 * time.Second)
		if n := w.heard(); n < 1000 {
			t.Errorf("%d frames in 3 s of a guest that sends one in a millisecond", n)
		}
		q := a.job.Query()
		if q.Generation != 1 || q.Peer != "b" || !q.Open || q.Stats.Checkpoints < 20 || q.Role != "primary" {
			t.Errorf("%+v", q)
		}
		if q := b.job.Query(); q.Generation != 1 || q.Peer != "a" || q.Open || q.Role != "secondary" {
			t.Errorf("%+v", q)
		}
		if got := a.states(); got != "alone synchronising protected" {
			t.Error(got)
		}
		if got := b.states(); got != "waiting following" {
			t.Error(got)
		}
		b.halt()
		a.halt()
		w.clean()
	})
}

func bubble(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			f(t, w)
			w.clean()
		})
	})
}

// A host dies, its connections with it or not; the other goes on, and when the
// dead one comes back it is protected again, in the other direction. And so on.
func TestSurvivorIsProtectedAgainAnyNumberOfTimes(t *testing.T) {
	for _, silent := range []bool{false, true} {
		bubble(t, map[bool]string{false: "connections break", true: "connections fall silent"}[silent], func(t *testing.T, w *world) {
			primary, secondary := w.protected()
			rounds := 6
			if testing.Short() {
				rounds = 3
			}
			for round := range rounds {
				time.Sleep(700 * time.Millisecond)
				before := w.heard()
				primary.kill(silent)
				secondary.is(Alone)
				primary.bury()
				time.Sleep(500 * time.Millisecond)
				if w.heard() == before {
					t.Errorf("round %d: nothing leaves the survivor", round)
				}
				back := w.boot(primary.name, false, nil)
				secondary.is(Protected)
				back.is(Following)
				if g := secondary.job.Query().Generation; g != uint64(round)+2 {
					t.Errorf("round %d: generation %d", round, g)
				}
				primary, secondary = secondary, back
			}
			secondary.halt()
			primary.halt()
		})
	}
}

func TestPrimaryGoesOnAloneAndTakesTheNextSecondary(t *testing.T) {
	for _, silent := range []bool{false, true} {
		bubble(t, map[bool]string{false: "connections break", true: "connections fall silent"}[silent], func(t *testing.T, w *world) {
			a, b := w.protected()
			for round := range 4 {
				time.Sleep(500 * time.Millisecond)
				b.kill(silent)
				a.is(Alone)
				b.bury()
				b = w.boot("b", false, nil)
				a.is(Protected)
				if g := a.job.Query().Generation; g != uint64(round)+2 {
					t.Errorf("round %d: generation %d", round, g)
				}
			}
			b.halt()
			a.halt()
		})
	}
}

// The two hosts lose each other, and both live and reach the arbiter: the one that
// has the guest keeps it, the other follows again when it can.
func TestPairThatIsPartedLeavesTheGuestWhereItIs(t *testing.T) {
	for _, silent := range []bool{false, true} {
		bubble(t, map[bool]string{false: "broken", true: "silent"}[silent], func(t *testing.T, w *world) {
			a, b := w.protected()
			for range 3 {
				time.Sleep(300 * time.Millisecond)
				w.f.part("a", "b", silent)
				a.is(Alone)
				b.is(Waiting)
				time.Sleep(3 * time.Second)
				w.f.join("a", "b")
				a.is(Protected)
				b.is(Following)
			}
			b.halt()
			a.halt()
		})
	}
}

// The primary loses the secondary and the arbiter at once; the secondary reaches
// the arbiter. The primary has stopped before the secondary begins (the client
// looks at both gates with every frame), and follows when it is back.
func TestPrimaryThatIsCutOffFromEverybodyStopsInTime(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(time.Second)
		a.noArbiter.Store(true)
		w.f.part("a", "b", true)
		b.is(Alone)
		if a.job.Gate().Open() {
			t.Error("both gates are open")
		}
		time.Sleep(time.Second)
		a.noArbiter.Store(false)
		w.f.join("a", "b")
		b.is(Protected)
		a.is(Following)
		time.Sleep(time.Second)
		b.halt()
		a.is(Alone)
		a.halt()
	})
}

func TestASecondaryThatIsCutOffFromEverybodyAsksUntilItIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		before := a.job.Query().Generation
		b.noArbiter.Store(true)
		w.f.part("a", "b", true)
		a.is(Alone)
		if g := a.job.Query().Generation; g != before+1 {
			t.Errorf("the primary goes on in generation %d, after %d", g, before)
		}
		b.is(Asking)
		time.Sleep(3 * w.term)
		if s := b.job.State(); s != Asking || b.job.Gate().Open() {
			t.Errorf("the secondary is %v", s)
		}
		w.hearsMore()
		b.noArbiter.Store(false)
		b.is(Waiting)
		w.f.join("a", "b")
		a.is(Protected)
		b.is(Following)
		b.halt()
		a.halt()
	})
}

func TestAnArbiterLearnsTheHostsAndTheCheckpointsAndNothingElse(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(2 * w.term)
		a.halt()
		b.is(Alone)
		b.halt()
		holders, note := map[string]bool{}, regexp.MustCompile(`^(checkpoint \d+|left by [ab])?$`)
		for _, r := range w.store.History() {
			holders[r.Holder] = true
			if !note.MatchString(r.Note) {
				t.Errorf("it is told %q", r.Note)
			}
		}
		if len(holders) != 3 || !holders["a"] || !holders["b"] || !holders[""] {
			t.Errorf("it knows the hosts %v", holders)
		}
	})
}

func TestALoneHostHoldsItsOutputWhileItsArbiterIsAway(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		w.hearsMore()
		a.noArbiter.Store(true)
		time.Sleep(w.term)
		before := w.heard()
		time.Sleep(3 * w.term)
		if n := w.heard() - before; n > 0 || a.job.Gate().Open() || a.guest.Paused() {
			t.Errorf("%d frames have left, the gate is open: %v, the guest stands still: %v", n, a.job.Gate().Open(), a.guest.Paused())
		}
		a.noArbiter.Store(false)
		w.hearsMore()
		if s := a.job.State(); s != Alone {
			t.Errorf("it is %v", s)
		}
		a.halt()
	})
}

func TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = time.Millisecond // its frames are counted
		a, b := w.protected()
		a.noArbiter.Store(true)
		b.noArbiter.Store(true)
		before := w.heard()
		time.Sleep(10 * w.term)
		if n := w.heard() - before; n < 9000 {
			t.Errorf("%d frames in 10 s", n)
		}
		if !a.job.Gate().Open() || a.job.State() != Protected || b.job.State() != Following {
			t.Errorf("%v, %v", a.job.State(), b.job.State())
		}
		// Now they lose each other too: nobody goes on until the arbiter is back.
		w.f.part("a", "b", false)
		time.Sleep(10 * w.term)
		if a.job.State() != Asking || b.job.State() != Asking || a.job.Gate().Open() {
			t.Errorf("%v, %v", a.job.State(), b.job.State())
		}
		before = w.heard()
		time.Sleep(time.Second)
		if w.heard() != before {
			t.Error("something left")
		}
		b.noArbiter.Store(false)
		b.is(Alone)
		a.noArbiter.Store(false)
		a.is(Waiting)
		w.f.join("a", "b")
		b.is(Protected)
		a.halt()
		b.halt()
	})
}

func TestHostThatLeavesLetsTheOtherGoOnAtOnce(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(time.Second)
		begin := time.Now()
		if err := a.halt(); err != errHalt {
			t.Error(err)
		}
		b.is(Alone)
		if d := time.Since(begin); d > w.term {
			t.Errorf("it took %v", d)
		}
		time.Sleep(time.Second)
		w.clean()
		b.halt()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.last != "b" {
			t.Error("nothing left b")
		}
	})
}

func TestSecondStartOfAGuestThatRunsElsewhereIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		b := w.boot("b", true, nil) // it believes to be the first
		a.is(Protected)
		b.is(Following)
		if b.states() != "waiting following" {
			t.Error(b.states())
		}
		b.halt()
		a.halt()
	})
}
