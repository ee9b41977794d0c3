package failover_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// What becomes of a grant whose renewals are not answered, or late.

// hanging returns a keeper of a store whose next answers, as many as left says, never come.
func hanging(t *testing.T, term time.Duration, left *atomic.Int64) *failover.Keeper {
	t.Helper()
	s := &failovertest.Store{Before: func(ctx context.Context, _ string) error {
		if left.Load() > 0 && left.Add(-1) >= 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	return keeperOn(t, s, "a", term, func(uint64, error) { t.Error("lost") })
}

// One question that is never answered is given up in time for another one: the gate never shuts.
func TestOneRenewalThatHangsDoesNotShutTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = time.Second
		var left atomic.Int64
		k := hanging(t, term, &left)
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		begin := k.Until()
		left.Store(1)
		for range 3 * term / time.Millisecond {
			time.Sleep(time.Millisecond)
			if !k.Gate().Open() {
				t.Fatalf("the gate shut %v after the grant's end would have come", time.Since(begin))
			}
		}
		if left.Load() > 0 {
			t.Error("nothing has hung")
		}
	})
}

// Questions that are never answered keep the gate open no longer than the term, and each is given up:
// the first that is answered opens it again, no later than a term after the arbiter answers.
func TestRenewalsThatHangKeepNoGateOpenAndAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = time.Second
		var left atomic.Int64
		k := hanging(t, term, &left)
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		left.Store(1 << 20)
		time.Sleep(time.Until(k.Until()) - time.Millisecond)
		if !k.Gate().Open() {
			t.Error("shut before its time")
		}
		for range 3 * term / time.Millisecond {
			time.Sleep(time.Millisecond)
			if k.Gate().Open() {
				t.Fatal("open after its time")
			}
		}
		if asked := 1<<20 - left.Load(); asked > 10 {
			t.Errorf("asked %d times in four terms", asked)
		}
		left.Store(0)
		answers := time.Now()
		<-k.Gate().Opened()
		if shut := time.Since(answers); shut > term {
			t.Errorf("shut for %v after the arbiter had come back", shut)
		}
	})
}

// An arbiter that takes nearly half a term for each answer keeps a gate open.
func TestASlowArbiterKeepsTheGateOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = time.Second
		s := &failovertest.Store{Before: func(ctx context.Context, op string) error {
			if op == "swap" {
				time.Sleep(term * 45 / 100)
			}
			return nil
		}}
		k := keeperOn(t, s, "a", term, func(uint64, error) { t.Error("lost") })
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for range 20 * term / time.Millisecond {
			time.Sleep(time.Millisecond)
			if !k.Gate().Open() {
				t.Fatal("the gate shut")
			}
		}
	})
}

// An arbiter that takes longer for each answer than the first renewal waits is waited for: the guest is
// kept, and the gate opens with each answer.
func TestAnArbiterThatTakesMoreThanHalfATermIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = time.Second
		s := &failovertest.Store{Before: func(ctx context.Context, op string) error {
			if op != "swap" {
				return nil
			}
			select {
			case <-time.After(term * 8 / 10):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		k := keeperOn(t, s, "a", term, func(uint64, error) { t.Error("lost") })
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		opened, open := 0, true
		for range 20 * term / time.Millisecond {
			time.Sleep(time.Millisecond)
			was := open
			if open = k.Gate().Open(); open && !was {
				opened++
			}
		}
		if opened < 10 {
			t.Errorf("the gate opened %d times in 20 terms", opened)
		}
	})
}

// slowRelease is an arbiter that takes its time to take a guest back, and counts what is asked of it meanwhile.
type slowRelease struct {
	failover.Arbiter
	takes    time.Duration
	released atomic.Bool
	renewals atomic.Int64 // after the release began
}

func (a *slowRelease) Release(ctx context.Context, g failover.Grant, note string) error {
	a.released.Store(true)
	time.Sleep(a.takes)
	return a.Arbiter.Release(ctx, g, note)
}

func (a *slowRelease) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if a.released.Load() {
		a.renewals.Add(1)
	}
	return a.Arbiter.Renew(ctx, g, note)
}

// A guest that is being given back is not asked for again, however long that takes.
func TestNothingIsRenewedThatIsBeingReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = time.Second
		a := &slowRelease{Arbiter: failover.NewStoreArbiter(new(failovertest.Store)), takes: 3 * term}
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: a, Holder: "a", Term: term})
		if err != nil {
			t.Fatal(err)
		}
		defer run(t, k)()
		g, err := k.Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(term / 10)
		if err := k.ReleaseGeneration(t.Context(), g, "over"); err != nil {
			t.Fatal(err)
		}
		if n := a.renewals.Load(); n > 0 {
			t.Errorf("it was renewed %d times", n)
		}
		if g, err = k.Acquire(t.Context(), g); err != nil { // and the next grant is renewed as ever
			t.Fatal(err)
		}
		time.Sleep(2 * term)
		if !k.Gate().Open() {
			t.Errorf("the gate of generation %d is shut", g)
		}
	})
}
