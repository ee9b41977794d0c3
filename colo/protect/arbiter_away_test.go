package protect

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// An arbiter that is out of reach is told of by the host that needs it, whether or not
// anything is held back because of it yet, and so is its return.
func TestAnArbiterThatIsOutOfReachIsToldOfOnce(t *testing.T) {
	for _, when := range []string{"at the start", "alone", "in step"} {
		bubble(t, when, func(t *testing.T, w *world) {
			w.guest.Interval = 50 * time.Millisecond // this is not about what it says
			var away atomic.Bool
			w.store.Before = func(context.Context, string) error {
				if away.Load() {
					return errors.New("no route to the arbiter")
				}
				return nil
			}
			var log lines
			var b *host
			if when == "in step" {
				b = w.boot("b", false, nil)
			}
			away.Store(when == "at the start")
			a := w.boot("a", true, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			switch when {
			case "alone":
				a.is(Alone)
			case "in step":
				a.is(Protected)
			}
			away.Store(true)
			time.Sleep(4 * w.term)
			all := said[event.Arbitration](a)
			if len(all) != 1 || all[0].Answer != event.ArbiterUnreachable || !strings.Contains(all[0].Error, "no route") {
				t.Errorf("%+v", all)
			}
			if n := log.with("level=WARN msg=ARBITRATION guest=guest", "answer=unreachable"); n != 1 {
				t.Errorf("%d warnings: %q", n, log.all())
			}
			if open := a.job.Query().Open; open != (b != nil) {
				t.Errorf("the gate is open: %v", open)
			}
			away.Store(false)
			time.Sleep(4 * w.term)
			all = said[event.Arbitration](a)
			if len(all) != 2 || all[1].Answer != event.ArbiterGranted || all[1].Error != "" {
				t.Errorf("%+v", all)
			}
			if !a.job.Query().Open {
				t.Error("the gate is shut")
			}
			a.halt()
			if b != nil {
				b.halt()
			}
		})
	}
}

// A host that has lost the other one, and then does not reach the arbiter, stands still. It says
// why, on either side, once, and that it goes on in the end.
func TestALostHostThatReachesNoArbiterSaysSoWhileItAsks(t *testing.T) {
	for _, side := range []string{"primary", "secondary"} {
		bubble(t, side, func(t *testing.T, w *world) {
			w.guest.Interval = 50 * time.Millisecond // this is not about what it says
			var away atomic.Bool
			w.store.Before = func(context.Context, string) error {
				if away.Load() {
					return errors.New("no route to the arbiter")
				}
				return nil
			}
			b := w.boot("b", false, nil)
			a := w.boot("a", true, nil)
			a.is(Protected)
			b.is(Following)
			lost, stays := a, b
			if side == "primary" {
				lost, stays = b, a
			}
			away.Store(true)
			lost.kill(false)
			time.Sleep(4 * w.term)
			if stays.job.State() != Asking {
				t.Fatalf("it is %v", stays.job.State())
			}
			var told []event.Arbitration
			for _, e := range said[event.Arbitration](stays) {
				if e.Answer == event.ArbiterUnreachable {
					told = append(told, e)
				}
			}
			if len(told) != 1 || told[0].Mode.String() != side || !strings.Contains(told[0].Error, "no route") {
				t.Errorf("told: %+v", told)
			}
			if err := stays.job.Query().LastError; err == nil || !strings.Contains(err.Error(), "the arbiter does not answer") {
				t.Errorf("the last error is %v", err)
			}
			away.Store(false)
			time.Sleep(4 * w.term)
			stays.is(Alone)
			var granted int
			for _, e := range said[event.Arbitration](stays) {
				if e.Answer == event.ArbiterGranted {
					granted++
				}
			}
			// That a primary's grant can be renewed again is told besides.
			if granted == 0 || granted > 1 && side == "secondary" {
				t.Errorf("the grant is told %d times", granted)
			}
			stays.halt()
		})
	}
}

// resting is an arbiter that renews nothing while two hosts are in step, whose promises count then.
type resting struct {
	failover.Arbiter
	rests atomic.Bool
	asked atomic.Int32 // while it rested
}

func (a *resting) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if a.rests.Load() {
		a.asked.Add(1)
		return failover.Grant{}, failover.ErrNotRenewed
	}
	return a.Arbiter.Renew(ctx, g, note)
}

// An arbiter that has answered is not out of reach, though it renews nothing for now.
func TestAnArbiterThatRenewsNothingForNowIsNotToldOf(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var log lines
		arbiter := &resting{}
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			arbiter.Arbiter, c.Arbiter = c.Arbiter, arbiter
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		a.is(Protected)
		arbiter.rests.Store(true)
		time.Sleep(4 * w.term)
		if arbiter.asked.Load() == 0 {
			t.Fatal("it was not asked")
		}
		if all := said[event.Arbitration](a); len(all) != 0 || log.with("msg=ARBITRATION") != 0 {
			t.Errorf("%+v, %q", all, log.all())
		}
		if q := a.job.Query(); q.LastError != nil || !q.Open {
			t.Errorf("%v, and the gate is open: %v", q.LastError, q.Open)
		}
		a.halt()
		b.halt()
	})
}
