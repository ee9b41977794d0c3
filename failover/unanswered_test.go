package failover_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// losingOne returns a store that loses one question of a kind, once it is told to: it is never answered.
func losingOne(kind string) (s *failovertest.Store, lose *atomic.Bool) {
	lose = new(atomic.Bool)
	return &failovertest.Store{Before: func(ctx context.Context, op string) error {
		if op == kind && lose.Swap(false) {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return nil
	}}, lose
}

// One question of a claim that the store does not answer is asked again, and the guest is granted,
// though the claim itself may wait for ever.
func TestAClaimOfWhichOneQuestionIsLostIsGranted(t *testing.T) {
	for _, kind := range []string{"load", "swap"} {
		for _, term := range []time.Duration{time.Second, -1} {
			t.Run(kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, lose := losingOne(kind)
					k := keeperOn(t, s, "a", term, nil)
					lose.Store(true)
					begun := time.Now()
					if g, err := k.Acquire(t.Context(), 0); g != 1 || err != nil || lose.Load() {
						t.Errorf("%d, %v", g, err)
					}
					most := 2 * term
					if term < 0 {
						most = 2 * failover.StoreTimeout
					}
					if d := time.Since(begun); d > most {
						t.Errorf("it took %v", d)
					}
				})
			})
		}
	}
}

// Every method of the arbiter says that it was not answered, and by what, or asks again.
func TestAQuestionThatAStoreDoesNotAnswerEnds(t *testing.T) {
	const term = time.Second
	synctest.Test(t, func(t *testing.T) {
		var silent atomic.Bool
		s := &failovertest.Store{Before: func(ctx context.Context, op string) error {
			if silent.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		a := failover.NewStoreArbiter(s)
		claim := failover.Claim{Holder: "a", Token: "1", Term: term}
		g, err := a.Acquire(t.Context(), claim)
		if err != nil {
			t.Fatal(err)
		}
		silent.Store(true)
		for name, ask := range map[string]func() error{
			"acquire": func() error { _, err := a.Acquire(t.Context(), claim); return err },
			"renew":   func() error { _, err := a.Renew(t.Context(), g, ""); return err },
			"release": func() error { return a.Release(t.Context(), g, "") },
			"record":  func() error { _, err := a.Record(t.Context()); return err },
			"watch":   func() error { _, err := a.Watch(t.Context(), failover.Record{}); return err },
		} {
			begun := time.Now()
			err := ask()
			if !errors.Is(err, failover.ErrUnanswered) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, failover.ErrRefused) {
				t.Errorf("%s: %v", name, err)
			}
			if d := time.Since(begun); d != term && d != failover.StoreTimeout {
				t.Errorf("%s ended after %v", name, d)
			}
		}
		// Whoever asks may give up sooner, and hears his own reason.
		ctx, cancel := context.WithTimeout(t.Context(), term/2)
		defer cancel()
		if _, err := a.Renew(ctx, g, ""); err == nil || errors.Is(err, failover.ErrUnanswered) {
			t.Errorf("given up: %v", err)
		}
	})
}

// A store that was to say of a change, and whose word is lost, is looked at again.
func TestAChangeOfWhichTheWordIsLostIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, lose := losingOne("changed")
		holder, watcher := failover.NewStoreArbiter(s), failover.NewStoreArbiter(s)
		lose.Store(true)
		first := make(chan failover.Record)
		go func() {
			r, err := watcher.Watch(t.Context(), failover.Record{})
			if err != nil {
				t.Error(err)
			}
			first <- r
		}()
		synctest.Wait()
		if _, err := holder.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "1"}); err != nil {
			t.Fatal(err)
		}
		if r := <-first; r.Generation != 1 || lose.Load() {
			t.Errorf("%+v", r)
		}
		// A claim that waits for a grant without an end sees that it is given back.
		lose.Store(true)
		granted := make(chan error)
		go func() {
			_, err := watcher.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "2", After: 1})
			granted <- err
		}()
		synctest.Wait()
		if err := holder.Release(t.Context(), failover.Grant{Generation: 1, Token: "1"}, ""); err != nil {
			t.Fatal(err)
		}
		if err := <-granted; err != nil || lose.Load() {
			t.Error(err)
		}
	})
}
