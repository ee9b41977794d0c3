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

var errUnheard = errors.New("connection reset")

// losing returns a store that makes every swap and, while lose is set, answers none, each after
// a time. Whatever is read is answered.
func losing(lose *atomic.Bool, after time.Duration) *failovertest.Store {
	return &failovertest.Store{After: func(_ context.Context, op string) error {
		if op != "swap" || !lose.Load() {
			return nil
		}
		time.Sleep(after)
		return errUnheard
	}}
}

// A host whose swaps are all made, and whose answers are all lost, keeps the other host
// from the guest: it must have it itself.
func TestAHostWhoseAnswersAreLostHasTheGuestThatItKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Bool
		lose.Store(true)
		s := losing(&lose, 0)
		k := keeperOn(t, s, "a", time.Second, func(g uint64, err error) { t.Errorf("deposed of %d: %v", g, err) })
		defer run(t, k)()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if g, err := k.Acquire(ctx, 0); g != 1 || err != nil {
			t.Fatal(g, err)
		}
		for range 100 {
			time.Sleep(97 * time.Millisecond)
			if !k.Gate().Open() {
				t.Fatal("the gate is shut, and nobody else can have the guest")
			}
		}
	})
}

// What is heard of late counts from when it was sent, and so the holder stops before the
// other host can have the guest.
func TestARenewalThatIsHeardOfLateCountsFromWhenItWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term, late = time.Second, 400 * time.Millisecond
		var lose atomic.Bool
		s := losing(&lose, late)
		a := failover.NewStoreArbiter(s)
		g, err := a.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: term})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		lose.Store(true)
		sent := time.Now()
		if _, err := a.Renew(t.Context(), g, "first"); !errors.Is(err, errUnheard) {
			t.Fatal(err)
		}
		r, _ := s.Load(t.Context())
		heard, err := a.Renew(t.Context(), g, "second")
		if err != nil || !heard.Sent.Equal(sent) || heard.Generation != 1 || heard.Term != term {
			t.Errorf("%+v, %v; want it to count from %v", heard, err, sent)
		}
		if now, _ := s.Load(t.Context()); now != r {
			t.Errorf("what was heard of was asked for again: %+v, was %+v", now, r)
		}
		// It is said once: what comes after it is a renewal.
		lose.Store(false)
		if next, err := a.Renew(t.Context(), g, "third"); err != nil || !next.Sent.Equal(time.Now()) {
			t.Errorf("%+v, %v", next, err)
		}
		if now, _ := s.Load(t.Context()); now.Note != "third" {
			t.Errorf("%+v", now)
		}
	})
}

// The store makes the first of two swaps from one record, when the second has been sent:
// the time of the first counts.
func TestOfTwoUnheardSwapsTheEarlierCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &late{Store: new(failovertest.Store)}
		a := failover.NewStoreArbiter(s)
		g, err := a.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", Term: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		s.after = 150 * time.Millisecond
		sent := time.Now()
		for range 2 {
			if _, err := a.Renew(t.Context(), g, ""); !errors.Is(err, errUnheard) {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if heard, err := a.Renew(t.Context(), g, ""); err != nil || !heard.Sent.Equal(sent) {
			t.Errorf("it counts from %v after the first was sent, %v", heard.Sent.Sub(sent), err)
		}
	})
}

// late makes swaps later, if it is told to, and answers none of them.
type late struct {
	*failovertest.Store
	after time.Duration
}

func (s *late) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if s.after == 0 {
		return s.Store.Swap(ctx, old, next)
	}
	time.AfterFunc(s.after, func() { s.Store.Swap(context.Background(), old, next) })
	return false, errUnheard
}

// A claim of which too much time has passed when it is heard of is made anew.
func TestAClaimThatIsHeardOfAfterItsTermIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Bool
		lose.Store(true)
		s := losing(&lose, 0)
		a := failover.NewStoreArbiter(s)
		c := failover.Claim{Holder: "a", Token: "a", Term: time.Second}
		if _, err := a.Acquire(t.Context(), c); !errors.Is(err, errUnheard) {
			t.Fatal(err)
		}
		lose.Store(false)
		time.Sleep(c.Term)
		if g, err := a.Acquire(t.Context(), c); err != nil || g.Generation != 1 || !g.Sent.Equal(time.Now()) {
			t.Errorf("%+v, %v", g, err)
		}
	})
}
