package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/require"
)

// A switchover is given up at any moment. Up to that in which the guest is given up, or given back to the arbiter, the
// pair stays protected in the same session, whether the other host has heard of the switchover or not, and
// whether the guest stands still for it; the guest runs on where it ran, and the next switchover is made as if
// there had been none. Later one of the two has it. The client notices nothing.
func TestASwitchoverIsGivenUpAtAnyMoment(t *testing.T) {
	heard, stood, over := 0, 0, 0
	for _, kind := range []string{"arbiter", "no arbiter", "compared", "released"} {
		for _, at := range require.Many([]int{20, 60, 75, 90}, momentsOf(4), momentsOf(1)) {
			bubble(t, fmt.Sprintf("%s, %d", kind, at), func(t *testing.T, w *world) {
				w.guest.Interval = 20 * time.Millisecond
				if kind == "released" {
					w.heeds = []string{}
				}
				if w.compared = kind == "compared"; w.compared {
					w.guest.TSCPerMille = 1
				}
				w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
				change := func(c *Config) {
					if kind == "no arbiter" {
						c.Arbiter = nil
					}
				}
				b := w.boot("b", false, change)
				a := w.boot("a", true, change)
				a.is(Protected)
				b.is(Following)
				time.Sleep(250 * time.Millisecond)
				a.slow.Store(int64(2 * time.Millisecond)) // of the release
				s, other := a.job.session(), b.job.session()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- a.job.Switchover(ctx) }()
				time.Sleep(time.Duration(at) * 100 * time.Microsecond)
				synctest.Wait()
				last, stands := s.converges(), a.guest.Paused()
				released := a.job.keeper.Until().IsZero() || s.getPurpose() != noPurpose
				cancel()
				err := <-done
				a.slow.Store(0)
				switch {
				case err == nil:
					over++
					b.is(Protected)
					a.is(Following)
				case released:
					if !strings.Contains(err.Error(), "the guest runs on here") {
						t.Errorf("%v", err)
					}
					a.is(Protected)
				default:
					if !errors.Is(err, context.Canceled) || a.job.session() != s || b.job.session() != other || a.job.State() != Protected {
						t.Fatalf("a is %v, in the same session %v, b %v: %v", a.states(), a.job.session() == s, b.job.session() == other, err)
					}
					if last {
						heard++
					}
					if last && stands {
						stood++
					}
					before, _ := s.committed()
					time.Sleep(time.Second)
					if now, _ := s.committed(); a.job.session() != s || b.job.session() != other || now < before+5 || a.job.Query().Progress != nil {
						t.Errorf("after checkpoint %d comes %d; a is %v, b is %v", before, now, a.states(), b.states())
					}
					w.hearsMore()
					if err := a.job.Switchover(t.Context()); err != nil {
						t.Error(err)
					}
					b.is(Protected)
					a.is(Following)
				}
				w.hearsMore()
				a.halt()
				b.halt()
			})
		}
	}
	t.Logf("%d were called off after the last checkpoint was asked for, %d while the guest stood still, %d were made", heard, stood, over)
	if heard == 0 || stood == 0 {
		t.Error("none was called off after the other host had heard of it, or none while the guest stood still")
	}
}

// unresumable is a guest that cannot be resumed any more from when that is said.
type unresumable struct {
	*colotest.VM
	fails *atomic.Bool
}

func (g unresumable) Resume(ctx context.Context) error {
	if g.fails.Load() {
		return errors.New("it is stuck")
	}
	return g.VM.Resume(ctx)
}

// A guest that stands still for a switchover that is given up, and cannot be resumed, runs on the other host.
func TestAGuestThatCannotRunOnAfterASwitchoverIsTheOtherHosts(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		w.delay = time.Minute // no checkpoint has the guest paused at the moment in which it is to run on
		fails := new(atomic.Bool)
		slow := &slowly{each: time.Second}
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			c.Guest = unresumable{c.Guest.(*colotest.VM), fails}
			c.Network = []Network{slowNIC{paced: c.Network[0].(paced), s: slow}}
		})
		a.is(Protected)
		b.is(Following)
		slow.on.Store(true) // the guest stands still by then
		ctx, cancel := context.WithTimeout(t.Context(), slow.each/2)
		defer cancel()
		time.AfterFunc(slow.each/4, func() { fails.Store(true) })
		err := a.job.Switchover(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "runs on here") {
			t.Errorf("%v", err)
		}
		slow.on.Store(false)
		a.slow.Store(0)
		b.passed(Alone)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}

// momentsOf returns the moments of a switchover, with a step between them.
func momentsOf(step int) (all []int) {
	for at := 0; at < 200; at += step {
		all = append(all, at)
	}
	return all
}
