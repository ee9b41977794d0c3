package protect

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// A guest that is about to be handed over stands still on the other host too when that has committed the
// last checkpoint: it would be paused once more otherwise, while it runs nowhere.
func TestAGuestThatIsHandedOverIsNotPausedOnceMore(t *testing.T) {
	for name, compared := range map[string]bool{"output waits": false, "output is compared": true} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval, w.compared, w.heeds = 10*time.Millisecond, compared, []string{}
			if compared {
				w.guest.TSCPerMille = 1
			}
			a, b := w.protected()
			time.Sleep(250 * time.Millisecond)
			a.slow.Store(int64(400 * time.Millisecond)) // of the release, which comes after the last checkpoint
			done := make(chan error, 1)
			go func() { done <- a.job.Switchover(t.Context()) }()
			a.is(SwitchingOver)
			for stood := 0; stood < 10; {
				time.Sleep(10 * time.Millisecond)
				if stood++; !a.guest.Paused() {
					stood = 0
				}
			}
			synctest.Wait()
			if b.job.State() != Following || !a.guest.Paused() {
				t.Fatalf("too late: b is %v", b.job.State())
			}
			if !b.guest.Paused() {
				t.Error("the guest on the host that takes it runs")
			}
			a.slow.Store(0)
			if err := <-done; err != nil {
				t.Error(err)
			}
			b.is(Protected)
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}

// A guest that was left standing for a switchover runs on in a takeover, if its primary dies before the
// last checkpoint or after it.
func TestAGuestThatWasLeftStandingForASwitchoverRunsInATakeover(t *testing.T) {
	type moment struct {
		after    time.Duration
		compared bool
	}
	const ms = time.Millisecond
	for name, at := range map[string]moment{
		"at once": {0, false}, "later": {150 * ms, false}, "when it is released": {450 * ms, false},
		"at once, compared": {0, true}, "later, compared": {150 * ms, true}, "when it is released, compared": {450 * ms, true},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval, w.compared, w.heeds = 10*ms, at.compared, []string{}
			if at.compared {
				w.guest.TSCPerMille = 1
			}
			a, b := w.protected()
			time.Sleep(250 * time.Millisecond)
			a.slow.Store(int64(400 * time.Millisecond))
			done := make(chan error, 1)
			go func() { done <- a.job.Switchover(t.Context()) }()
			for range 200 { // the question before the last checkpoint is answered late as well
				if time.Sleep(10 * time.Millisecond); a.guest.Paused() {
					break
				}
			}
			time.Sleep(at.after)
			a.kill(true)
			b.is(Alone)
			w.hearsMore()
			<-done
			a.bury()
			b.halt()
		})
	}
}

// Where output is compared, the guest of a secondary that was left standing for a switchover runs again as soon as that
// is called off, and not only from the next checkpoint on: nothing would be compared up to then.
func TestBothGuestsRunAgainAfterASwitchoverThatWasCalledOff(t *testing.T) {
	callsOffStanding(t, false)
}

// Where that guest cannot be resumed the session ends, as where a checkpoint cannot resume it, and the primary's runs on.
func TestASecondarysGuestThatCannotRunAgainEndsTheSession(t *testing.T) {
	callsOffStanding(t, true)
}

// callsOffStanding calls a switchover off when both guests have been left standing for it. The secondary's cannot be resumed any
// more then, if it fails.
func callsOffStanding(t *testing.T, fails bool) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval, w.guest.TSCPerMille, w.compared, w.delay = 20*time.Millisecond, 1, true, time.Minute
		w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
		// The secondary takes a while over a commit, as a real one does, and has heard by then that it is the last.
		slow := func(side event.Mode, what string, _ uint64) {
			if side == event.ModeSecondary && what == "commit" {
				time.Sleep(500 * time.Microsecond)
			}
		}
		stuck := new(atomic.Bool)
		b := w.boot("b", false, func(c *Config) {
			c.Session.Step, c.Guest = slow, unresumable{c.Guest.(*colotest.VM), stuck}
		})
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		s := a.job.session()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.job.Switchover(ctx) }()
		for !b.job.vm.isLeft() {
			if time.Sleep(100 * time.Microsecond); b.job.State() != Following {
				t.Fatal("the guest there was not left standing")
			}
		}
		if !a.guest.Paused() || !b.guest.Paused() {
			t.Fatal("one of the guests runs")
		}
		before, _ := s.committed()
		stuck.Store(fails)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if fails {
			a.is(Alone)
			b.is(Waiting)
			if q := b.job.Query(); q.LastError == nil || !strings.Contains(q.LastError.Error(), "resume the guest: it is stuck") {
				t.Errorf("b says %v", q.LastError) // it would find that out at the next checkpoint
			}
			w.hearsMore()
			stuck.Store(false)
			a.is(Protected)
			b.is(Following)
			a.halt()
			b.halt()
			return
		}
		time.Sleep(10 * time.Millisecond) // to the secondary's, by the link
		if now, _ := s.committed(); a.guest.Paused() || b.guest.Paused() || now > before+1 || a.job.session() != s {
			t.Errorf("a's stands still: %v, b's: %v, at checkpoint %d, %d before", a.guest.Paused(), b.guest.Paused(), now, before)
		}
		a.halt()
		b.halt()
	})
}
