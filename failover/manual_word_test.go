package failover_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// An operator who was told that his yes has counted finds that it has, though the claim was given up in
// the same moment.
func TestAYesThatComesAsAClaimIsGivenUpCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := failover.NewManual(failover.Record{})
		counted := 0
		for range 200 {
			before, _ := m.Record(t.Context())
			ctx, cancel := context.WithCancel(t.Context())
			said := make(chan error)
			go func() {
				_, err := m.Acquire(ctx, failover.Claim{Holder: "a", Token: "a", After: before.Generation})
				said <- err
			}()
			synctest.Wait()
			cancel()
			yes := m.Grant()
			if err := <-said; (yes == nil) != (err == nil) {
				t.Fatalf("the operator was told %v, the host %v", yes, err)
			}
			r, _ := m.Record(t.Context())
			if yes == nil && r.Generation != before.Generation+1 {
				t.Fatalf("%+v after %+v", r, before)
			}
			if yes == nil {
				counted++
			}
		}
		if counted == 0 {
			t.Error("no yes was said")
		}
	})
}

// A grant by a person has no deadline, whatever was asked for, and a release, or a revocation, ends it once.
func TestAGrantByAPersonLastsUntilItIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := failover.NewManual(failover.Record{})
		got := make(chan failover.Grant, 1)
		go func() {
			g, err := m.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: time.Second})
			if err != nil {
				t.Error(err)
			}
			got <- g
		}()
		synctest.Wait()
		m.Grant()
		g := <-got
		if r, _ := m.Record(t.Context()); r.Term != 0 || r.Holder != "a" || r.Generation != 1 {
			t.Errorf("%+v", r)
		}
		if err := m.Release(t.Context(), g, "left"); err != nil {
			t.Fatal(err)
		}
		released, _ := m.Record(t.Context())
		if released.Held() || released.Generation != 1 || released.Note != "left" {
			t.Errorf("%+v", released)
		}
		if err := m.Release(t.Context(), g, ""); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("released twice: %v", err)
		}
		m.Revoke()
		if r, _ := m.Record(t.Context()); r != released {
			t.Errorf("a revocation of nothing: %+v, was %+v", r, released)
		}
	})
}

func TestAPersonIsNotAskedWhatNobodyMayClaim(t *testing.T) {
	m := failover.NewManual(failover.Record{})
	m.Asked = func(c failover.Claim) { t.Errorf("asked: %+v", c) }
	for _, c := range []failover.Claim{{}, {Holder: "a"}, {Token: "t"}, {Holder: "a", Token: "t", Note: strings.Repeat("x", failover.MaxNote+1)}} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := m.Acquire(ctx, c); !errors.Is(err, failover.ErrClaim) {
			t.Errorf("%+v: %v", c, err)
		}
		cancel()
	}
}

// A swap that was never made, and whose answer was lost, does not shorten what is granted later.
func TestASwapThatWasNeverMadeShortensNoLaterGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lossy{Store: new(failovertest.Store)}
		a := failover.NewStoreArbiter(s)
		g, err := a.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		s.drop = true
		if _, err := a.Renew(t.Context(), g, "never made"); !errors.Is(err, errUnheard) {
			t.Fatal(err)
		}
		s.drop = false
		time.Sleep(time.Second)
		if g, err = a.Renew(t.Context(), g, "heard of"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.mute = true
		sent := time.Now()
		if _, err := a.Renew(t.Context(), g, "made"); !errors.Is(err, errUnheard) {
			t.Fatal(err)
		}
		s.mute = false
		time.Sleep(time.Second)
		if g, err = a.Renew(t.Context(), g, "heard of late"); err != nil || !g.Sent.Equal(sent) {
			t.Errorf("it counts from %v after it was sent, %v", g.Sent.Sub(sent), err)
		}
	})
}

// lossy is a store that drops swaps, or makes them and does not answer.
type lossy struct {
	failover.Store
	drop, mute bool
}

func (s *lossy) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if s.drop {
		return false, errUnheard
	}
	ok, err := s.Store.Swap(ctx, old, next)
	if s.mute {
		return false, errUnheard
	}
	return ok, err
}
