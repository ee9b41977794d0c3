package failover_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A word is no grant: there is nothing of it that could be given back to the arbiter, and its gate
// stays open.
func TestAGenerationThatIsHeldByAWordIsNotReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keeperOn(t, new(failovertest.Store), "a", time.Second, nil)
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		held := k.Fenced(1)
		if err := k.ReleaseGeneration(t.Context(), held, ""); !errors.Is(err, failover.ErrRefused) || !k.Gate().Open() || k.Generation() != held {
			t.Errorf("%v; the gate is open: %v, of generation %d", err, k.Gate().Open(), k.Generation())
		}
	})
}

// slowFirst is an arbiter that grants everything, the first claim when it is let.
type slowFirst struct {
	failover.Arbiter
	let      chan struct{}
	released []uint64
}

func (s *slowFirst) Acquire(_ context.Context, c failover.Claim) (failover.Grant, error) {
	sent := time.Now()
	if c.After == 0 {
		<-s.let
	}
	return failover.Grant{Generation: c.After + 1, Token: c.Token, Term: c.Term, Sent: sent}, nil
}

func (s *slowFirst) Release(_ context.Context, g failover.Grant, _ string) error {
	s.released = append(s.released, g.Generation)
	return nil
}

// An answer that comes when a later generation is held changes nothing: what is given back is the
// later one.
func TestAGrantOfAnEarlierGenerationIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &slowFirst{let: make(chan struct{})}
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: a, Holder: "a", Term: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan error)
		go func() {
			_, err := k.Acquire(t.Context(), 0)
			said <- err
		}()
		synctest.Wait()
		if _, err := k.Acquire(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		close(a.let)
		if err := <-said; err != nil {
			t.Error(err)
		}
		if err := k.Release(t.Context(), ""); err != nil || len(a.released) != 1 || a.released[0] != 2 || k.Gate().Open() {
			t.Errorf("%v, released %v", err, a.released)
		}
	})
}

// A store that never says of a change is looked at, by whoever watches it and by a claim that waits
// for the end of a term which is long.
func TestAStoreThatNeverSaysOfAChangeIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &failovertest.Store{Before: func(ctx context.Context, op string) error {
			if op == "changed" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		holder, other := failover.NewStoreArbiter(s), failover.NewStoreArbiter(s)
		g, err := holder.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "1", Term: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		seen, err := other.Record(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		watched, granted := make(chan error), make(chan error)
		go func() { _, err := other.Watch(t.Context(), seen); watched <- err }()
		go func() {
			_, err := other.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "2", After: 1, Term: time.Hour})
			granted <- err
		}()
		synctest.Wait()
		begun := time.Now()
		if err := holder.Release(t.Context(), g, ""); err != nil {
			t.Fatal(err)
		}
		if w, c := <-watched, <-granted; w != nil || c != nil || time.Since(begun) > 2*failover.StoreTimeout {
			t.Errorf("%v, %v, after %v", w, c, time.Since(begun))
		}
	})
}
