package protect

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// A switchover is cut off at any moment, or what comes after it, where an operator is the arbiter,
// who says a word only where the guest stands still on both hosts, on either of those that ask. One
// of the two goes on; when they reach each other again the other follows it, and nobody is
// asked twice.
func TestASwitchoverWithoutAnArbiterIsCutOffAtAnyMoment(t *testing.T) {
	for seed := range require.Many[uint64](6, 30, 200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		bubble(t, fmt.Sprint(seed), func(t *testing.T, w *world) {
			w.guest.Interval = 20 * time.Millisecond
			w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
			none := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			a.is(Protected)
			b.is(Following)
			done := make(chan struct{})
			go func() { defer close(done); a.job.Switchover(t.Context()) }()
			time.Sleep(time.Duration(rng.IntN(40_000)) * time.Microsecond)
			silent := rng.IntN(3) > 0
			if silent {
				w.f.ways.quiet("a", "b")
				if rng.IntN(2) == 0 {
					w.f.ways.quiet("b", "a")
				}
			} else {
				w.f.ways.part("a", "b")
			}
			time.Sleep(40 * time.Second) // more than anything waits for
			chosen, other := a, b
			if a.job.State() != Asking || b.job.State() == Asking && rng.IntN(2) == 0 {
				chosen, other = b, a
			}
			if chosen.job.State() == Asking && !other.job.State().runs() {
				other.job.keeper.Drop() // the operator sees to it that nothing leaves there
				if err := chosen.job.Failover(); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(5 * time.Second)
			w.f.ways.mend(silent)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			first, err := a.job.Wait(ctx, Protected, Following)
			second, err2 := b.job.Wait(ctx, Protected, Following)
			if err != nil || err2 != nil || first == second {
				t.Errorf("a is %v (%v), b is %v (%v)", first, a.states(), second, b.states())
			} else {
				w.hearsMore()
			}
			a.halt()
			b.halt()
			<-done
		})
	}
}

// Who goes on after such a switchover an operator may say hours later. The verb does not wait for
// him much beyond its own time, and what he says then counts.
func TestASwitchoverDoesNotWaitForAnOperatorBeyondItsTime(t *testing.T) {
	for _, migrate := range []bool{false, true} {
		bubble(t, fmt.Sprint("migrate ", migrate), func(t *testing.T, w *world) {
			none := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			a.is(Protected)
			b.is(Following)
			a.on(SwitchingOver, func() { w.f.part("a", "b", true) })
			verb := a.job.Switchover
			if migrate {
				verb = a.job.Migrate
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			begun := time.Now()
			err := verb(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "this host is asking") {
				t.Errorf("the verb says: %v", err)
			}
			if time.Since(begun) > 21*time.Second+a.job.cfg.PeerTimeout {
				t.Errorf("it took %v", time.Since(begun))
			}
			if s := a.job.State(); s != Asking {
				t.Fatalf("a is %v", s)
			}
			b.kill(true)
			if err := a.job.Failover(); err != nil {
				t.Fatal(err)
			}
			a.is(Alone)
			w.hearsMore()
			a.halt()
		})
	}
}
