package failover_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A guest stands still while it is handed over, and so for as long as the store takes for what
// the two hosts ask it. Both know the record: one has written it, and the other has watched it.
func TestAGuestThatIsHandedOverWaitsForOneSwapOfEachHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failovertest.Store)
		a, b := failover.NewStoreArbiter(store), failover.NewStoreArbiter(store)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ofA, err := a.Acquire(ctx, failover.Claim{Holder: "a", Token: "of a", Term: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		seen, err := b.Record(ctx)
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan error, 1)
		go func() {
			_, err := b.Watch(ctx, seen)
			heard <- err
		}()
		synctest.Wait()
		if ofA, err = a.Renew(ctx, ofA, "checkpoint 7"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var asked []string
		store.Before = func(_ context.Context, op string) error {
			if op != "changed" {
				asked = append(asked, op)
			}
			return nil
		}
		if err := a.Release(ctx, ofA, "handed to b"); err != nil {
			t.Fatal(err)
		}
		if err := <-heard; err != nil {
			t.Fatal(err)
		}
		g, err := b.Acquire(ctx, failover.Claim{Holder: "b", Token: "of b", After: 1, Term: time.Second})
		if err != nil || g.Generation != 2 || g.Token != "of b" || g.Term != time.Second || !g.Sent.Equal(time.Now()) {
			t.Errorf("%+v, %v", g, err)
		}
		if !slices.Equal(asked, []string{"swap", "swap"}) {
			t.Errorf("the store was asked for %v", asked)
		}
		if r, err := a.Record(ctx); err != nil || r.Generation != 2 || r.Holder != "b" {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// What a host has read last may be old by then. It is no answer: only the record is.
func TestAHostWhoseRecordIsOldAsksForItAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		store := new(failovertest.Store)
		a, b, c := failover.NewStoreArbiter(store), failover.NewStoreArbiter(store), failover.NewStoreArbiter(store)
		claim := func(of *failover.StoreArbiter, who string, after uint64) (failover.Grant, error) {
			return of.Acquire(ctx, failover.Claim{Holder: who, Token: "of " + who, After: after, Term: time.Second})
		}
		must := func(g failover.Grant, err error) failover.Grant {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		ofA := must(claim(a, "a", 0))
		if _, err := b.Record(ctx); err != nil {
			t.Fatal(err)
		}
		if err := a.Release(ctx, ofA, ""); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Record(ctx); err != nil || r.Held() {
			t.Fatal(r, err)
		}
		ofB := must(claim(b, "b", 1))                   // which has last seen it held
		if err := c.Release(ctx, ofB, ""); err != nil { // for b, of whose grant it has read nothing
			t.Error(err)
		}
		if _, err := claim(a, "a", 1); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("a, which has last seen it released after generation 1: %v", err)
		}
		if err := a.Release(ctx, ofA, ""); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("a releases what b has: %v", err)
		}
		if r, err := a.Record(ctx); err != nil || r.Generation != 2 || r.Held() {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// A swap whose answer was lost may have been made. The record is read before anything else is tried.
func TestAfterALostAnswerTheRecordIsRead(t *testing.T) {
	for _, made := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			store := new(failovertest.Store)
			a := failover.NewStoreArbiter(store)
			g, err := a.Acquire(ctx, failover.Claim{Holder: "a", Token: "of a", Term: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			lost, asked := errors.New("lost"), []string(nil)
			fail := func(_ context.Context, op string) error {
				if asked = append(asked, op); op == "swap" {
					return lost
				}
				return nil
			}
			if store.Before = fail; made {
				store.Before, store.After = nil, fail
			}
			if err := a.Release(ctx, g, "a leaves"); !errors.Is(err, lost) {
				t.Fatal(err)
			}
			store.Before, store.After, asked = nil, nil, nil
			store.Before = func(_ context.Context, op string) error { asked = append(asked, op); return nil }
			err = a.Release(ctx, g, "a leaves")
			if made != errors.Is(err, failover.ErrRefused) || !made && err != nil || asked[0] != "load" {
				t.Errorf("made %v: %v, asked for %v", made, err, asked)
			}
		})
	}
}
