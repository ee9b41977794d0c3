package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A hang is something that whoever calls it waits for, from when it is on until it is over.
type hang struct {
	on    atomic.Bool
	heeds bool // a call returns when its context has ended
	over  chan struct{}
}

func (g *hang) wait(ctx context.Context) error {
	if !g.on.Load() {
		return nil
	}
	var done <-chan struct{}
	if g.heeds {
		done = ctx.Done()
	}
	select {
	case <-g.over:
		return nil
	case <-done:
		return context.Cause(ctx)
	}
}

// hangingStore is a store of which each question hangs.
type hangingStore struct {
	failover.Store
	g *hang
}

func (s hangingStore) Load(ctx context.Context) (failover.Record, error) {
	if err := s.g.wait(ctx); err != nil {
		return failover.Record{}, err
	}
	return s.Store.Load(ctx)
}

func (s hangingStore) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if err := s.g.wait(ctx); err != nil {
		return false, err
	}
	return s.Store.Swap(ctx, old, next)
}

func (s hangingStore) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	if err := s.g.wait(ctx); err != nil {
		return failover.Record{}, err
	}
	return s.Store.Changed(ctx, seen)
}

// hangingFencer fences nobody, and hangs.
type hangingFencer struct{ g *hang }

func (f hangingFencer) Fence(ctx context.Context, _ uint64) error { return f.g.wait(ctx) }

// pairThatHangs boots a pair in step. One host asks an arbiter, or a fencer, that will hang, or an
// arbiter of which only the swaps do.
func pairThatHangs(w *world, who, what string, heeds bool) (a, b *host, g *hang) {
	g = &hang{heeds: heeds, over: make(chan struct{})}
	of := func(name string) func(*Config) {
		return func(c *Config) {
			switch {
			case name != who:
			case what == "fencer":
				c.Fencer = hangingFencer{g}
			case what == "swaps":
				c.Arbiter = failover.NewStoreArbiter(lateStore{w.store, g})
			default:
				c.Arbiter = failover.NewStoreArbiter(hangingStore{w.store, g})
			}
		}
	}
	b = w.boot("b", false, of("b"))
	a = w.boot("a", true, of("a"))
	a.is(Protected)
	b.is(Following)
	return a, b, g
}

// Fenced is the word of an operator who knows what the arbiter cannot say, or the fencer cannot do.
// It takes effect at once, though the question that was asked before never ends; and up to then
// LastError says what is waited for.
func TestFencedWaitsForNoArbiterAndNoFencerThatHangs(t *testing.T) {
	for _, c := range []struct {
		what, said string
		heeds      bool
	}{
		{"arbiter", "the store has not answered for 1s", true},
		{"arbiter", "the arbiter has granted and refused nothing for 11s", false},
		{"fencer", "fence: it has not returned for 10s", true},
		{"fencer", "fence: it has not returned for 10s", false},
	} {
		bubble(t, fmt.Sprint(c.what, ", heeds its context: ", c.heeds), func(t *testing.T, w *world) {
			a, b, g := pairThatHangs(w, "b", c.what, c.heeds)
			g.on.Store(true)
			a.kill(false)
			a.bury()
			b.is(Asking)
			before := w.heard()
			time.Sleep(20 * time.Second)
			if s := b.job.State(); s != Asking || w.heard() != before {
				t.Fatalf("b is %v", s)
			}
			if err := b.job.Query().LastError; err == nil || !strings.Contains(err.Error(), c.said) {
				t.Errorf("LastError: %v", err)
			}
			begun := time.Now()
			if err := b.job.Fenced(); err != nil {
				t.Fatal(err)
			}
			b.is(Alone)
			if d := time.Since(begun); d > 2*time.Second {
				t.Errorf("it took %v", d)
			}
			w.hearsMore()
			close(g.over)
			time.Sleep(5 * time.Second) // the arbiter is told now
			if r, err := w.store.Load(t.Context()); err != nil || r.Holder != "b" {
				t.Errorf("%+v, %v", r, err)
			}
			b.halt()
		})
	}
}

// A verb that is given up returns, and the next one has its turn, though the arbiter does not answer
// the question that it has asked, or a disk does not take the generation.
func TestAVerbIsGivenUpThoughWhatItAsksHangs(t *testing.T) {
	for _, what := range []string{"arbiter, heeds its context", "arbiter", "disk"} {
		bubble(t, what, func(t *testing.T, w *world) {
			a, b, g := pairThatHangs(w, "a", "arbiter", strings.Contains(what, "heeds"))
			if what == "disk" {
				a.job.holding <- struct{}{} // as long as one is being written
			} else {
				g.on.Store(true)
			}
			for name, verb := range map[string]func(context.Context) error{
				"pause":    func(ctx context.Context) error { return a.job.Pause(ctx, "") },
				"cancel":   a.job.Cancel,
				"complete": a.job.Complete,
			} {
				begun := time.Now()
				// Beside all that the hosts do every so many milliseconds: a session whose generation is over
				// ends when something happens between two verbs.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second+7*time.Millisecond)
				err := verb(ctx)
				cancel()
				if d := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || d > 7*time.Second {
					t.Errorf("%s: %v, after %v", name, err, d)
				}
			}
			if what == "disk" {
				<-a.job.holding
			}
			close(g.over)
			a.is(Protected)
			b.is(Following)
			if err := a.job.Pause(t.Context(), ""); err != nil {
				t.Error(err)
			}
			a.is(Paused)
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}

// A host that leaves while its arbiter hangs has given up all that it held when the other host goes
// on, and its Run returns when the question does.
func TestAHostThatLeavesAnArbiterThatHangsHoldsNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, g := pairThatHangs(w, "a", "arbiter", false)
		g.on.Store(true)
		a.stop(errHalt)
		b.is(Alone)
		time.Sleep(time.Minute)
		if !a.guest.Paused() || a.job.Gate().Open() || a.job.State() != Concluded {
			t.Errorf("a is %v, its guest stands still: %v, its gate is open: %v", a.job.State(), a.guest.Paused(), a.job.Gate().Open())
		}
		if c, err := w.f.dial(t.Context(), "b", "a"); err == nil {
			c.Close()
			t.Error("a listens")
		}
		select {
		case <-a.done:
			t.Error("its Run has returned before the question")
		default:
		}
		close(g.over)
		a.bury()
		w.hearsMore()
		b.halt()
	})
}
