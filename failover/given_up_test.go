package failover_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// keepers returns the keepers of two hosts over one store, of which the first holds generation 1, and is renewed.
// The second host watches the record, as one that follows does.
func keepers(t *testing.T, store *failovertest.Store) (a, b *failover.Keeper) {
	t.Helper()
	make := func(holder string) (*failover.Keeper, *failover.StoreArbiter) {
		arbiter := failover.NewStoreArbiter(store)
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: arbiter, Holder: holder, Term: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return k, arbiter
	}
	a, _ = make("a")
	b, watching := make("b")
	if g, err := a.Acquire(t.Context(), 0); g != 1 || err != nil {
		t.Fatal(g, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		synctest.Wait()
	})
	seen, err := watching.Record(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go watching.Watch(ctx, seen)
	go a.Run(ctx)
	go b.Run(ctx)
	time.Sleep(2500 * time.Millisecond) // it is renewed meanwhile
	synctest.Wait()
	if !a.Gate().Open() {
		t.Fatal("the gate of the holder is shut")
	}
	return a, b
}

// A guest that is handed over stands still for as long as the arbiter takes. Where its holder gives it up the holder
// asks nothing, and the claimant once.
func TestAGuestThatIsGivenUpWaitsForOneSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failovertest.Store)
		var mu sync.Mutex
		var asked []string
		store.Before = func(_ context.Context, op string) error {
			mu.Lock()
			defer mu.Unlock()
			if op != "changed" {
				asked = append(asked, op)
			}
			return nil
		}
		a, b := keepers(t, store)
		mu.Lock()
		asked = nil
		mu.Unlock()
		token, err := a.Yield(1)
		if err != nil || a.Gate().Open() || a.Generation() != 0 {
			t.Fatalf("%v; its gate is open: %v, and it holds %d", err, a.Gate().Open(), a.Generation())
		}
		if g, err := b.AcquireFrom(t.Context(), 1, token); g != 2 || err != nil || !b.Gate().Open() {
			t.Errorf("generation %d, %v; its gate is open: %v", g, err, b.Gate().Open())
		}
		mu.Lock()
		if !slices.Equal(asked, []string{"swap"}) {
			t.Errorf("the store was asked for %v", asked)
		}
		mu.Unlock()
		if g, err := a.Acquire(t.Context(), 1); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("the host that has given it up gets generation %d: %v", g, err)
		}
		time.Sleep(3 * time.Second)
		if !b.Gate().Open() || a.Gate().Open() {
			t.Error("the claimant does not keep it")
		}
	})
}

// A claimant that has not heard that it is to go on waits for the term, and the holder may take back what
// it has given up: then the other host is refused.
func TestAGuestThatWasGivenUpInVainIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := keepers(t, new(failovertest.Store))
		token, err := a.Yield(1)
		if err != nil {
			t.Fatal(err)
		}
		asked, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer stop()
		if g, err := b.Acquire(asked, 1); err == nil {
			t.Errorf("generation %d for a host that was not told", g)
		}
		if a.Gate().Open() {
			t.Error("the gate of a host that has given its guest up is open")
		}
		if g, err := a.Acquire(t.Context(), 1); g != 2 || err != nil || !a.Gate().Open() {
			t.Errorf("generation %d, %v; its gate is open: %v", g, err, a.Gate().Open())
		}
		if g, err := b.AcquireFrom(t.Context(), 1, token); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("generation %d for a host that is told too late: %v", g, err)
		}
	})
}

// Where nobody takes what was given up, anybody who has followed may, when the term is over.
func TestAGuestThatWasGivenUpIsFreeAtTheEndOfItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := keepers(t, new(failovertest.Store))
		if _, err := a.Yield(1); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if g, err := b.Acquire(t.Context(), 1); g != 2 || err != nil {
			t.Error(g, err)
		}
		if d := time.Since(begin); d > 1100*time.Millisecond {
			t.Errorf("it waited %v for a term of a second", d)
		}
	})
}

// A host gives up the generation that it means, and none of which the arbiter does not know.
func TestOnlyTheGenerationThatIsHeldIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := keepers(t, new(failovertest.Store))
		for _, generation := range []uint64{0, 2} {
			if _, err := a.Yield(generation); !errors.Is(err, failover.ErrRefused) || !a.Gate().Open() {
				t.Errorf("generation %d: %v; the gate is open: %v", generation, err, a.Gate().Open())
			}
		}
		held := a.Fenced(1)
		if _, err := a.Yield(held); !errors.Is(err, failover.ErrRefused) || !a.Gate().Open() {
			t.Errorf("a generation by an operator's word: %v; the gate is open: %v", err, a.Gate().Open())
		}
		if _, err := b.Yield(0); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("a host that holds nothing: %v", err)
		}
	})
}

// A renewal that is under way when the guest is given up may be answered after it, and opens no gate.
func TestARenewalThatIsAnsweredAfterTheGuestWasGivenUpOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failovertest.Store)
		under, goOn := make(chan struct{}), make(chan struct{})
		var stops atomic.Bool
		store.Before = func(_ context.Context, op string) error {
			if op == "swap" && stops.CompareAndSwap(true, false) {
				close(under)
				<-goOn
			}
			return nil
		}
		a, b := keepers(t, store)
		stops.Store(true)
		<-under // of the next renewal
		token, err := a.Yield(1)
		if err != nil {
			t.Fatal(err)
		}
		close(goOn)
		synctest.Wait()
		if a.Gate().Open() || a.Generation() != 0 {
			t.Error("the gate of a host that has given its guest up is open")
		}
		if g, err := b.AcquireFrom(t.Context(), 1, token); g != 2 || err != nil {
			t.Error(g, err)
		}
	})
}
