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

func keeper(t *testing.T, term time.Duration) (*failover.Keeper, *failovertest.Store) {
	t.Helper()
	s := new(failovertest.Store)
	return keeperOn(t, s, "a", term, nil), s
}

func keeperOn(t *testing.T, s *failovertest.Store, name string, term time.Duration, lost func(uint64, error)) *failover.Keeper {
	t.Helper()
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: failover.NewStoreArbiter(s), Holder: name, Term: term, Lost: lost})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run starts k and stops it at the end of the bubble.
func run(t *testing.T, k *failover.Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	return func() { cancel(); <-done }
}

// resting is an arbiter that at times renews nothing, by its own rules.
type resting struct {
	failover.Arbiter
	rests atomic.Bool
}

func (a *resting) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if a.rests.Load() {
		return failover.Grant{}, failover.ErrNotRenewed
	}
	return a.Arbiter.Renew(ctx, g, note)
}

// An arbiter that renews nothing for now has been asked: nobody is told of a failure. The grant runs
// out all the same, and is good again when it is renewed.
func TestAnArbiterThatRenewsNothingForNowHasNotFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &resting{Arbiter: failover.NewStoreArbiter(new(failovertest.Store))}
		k, err := failover.NewKeeper(failover.KeeperConfig{
			Arbiter: a, Holder: "a", Term: time.Second,
			Failed: func(err error) { t.Error("it has failed:", err) },
			Lost:   func(_ uint64, why error) { t.Error("the grant is over:", why) },
		})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, k)
		defer stop()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		a.rests.Store(true)
		time.Sleep(2 * time.Second)
		if k.Gate().Open() {
			t.Error("the gate is open after the grant's end")
		}
		a.rests.Store(false)
		time.Sleep(time.Second)
		if !k.Gate().Open() {
			t.Error("the gate is shut after a renewal")
		}
	})
}

func TestKeeperRenewsForAsLongAsItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := keeper(t, time.Second)
		stop := run(t, k)
		if g, err := k.Acquire(t.Context(), 0); g != 1 || err != nil {
			t.Fatal(g, err)
		}
		if err := k.SetNote("checkpoint 9"); err != nil {
			t.Fatal(err)
		}
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !k.Gate().Open() {
				t.Fatal("the gate shut while the arbiter answered")
			}
		}
		if r, _ := s.Load(t.Context()); r.Note != "checkpoint 9" || r.Generation != 1 {
			t.Errorf("%+v", r)
		}
		stop()
		time.Sleep(time.Second)
		if k.Gate().Open() {
			t.Error("the gate is open a term after the last renewal")
		}
	})
}

func TestShortOutageOfTheArbiterIsNotNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out atomic.Bool
		s := &failovertest.Store{Before: func(context.Context, string) error {
			if out.Load() {
				return errors.New("no route")
			}
			return nil
		}}
		k := keeperOn(t, s, "a", time.Second, func(uint64, error) { t.Error("lost") })
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		out.Store(true)
		time.Sleep(600 * time.Millisecond)
		if !k.Gate().Open() {
			t.Error("shut before the term ran out")
		}
		out.Store(false)
		time.Sleep(200 * time.Millisecond)
		out.Store(true)
		time.Sleep(700 * time.Millisecond)
		if !k.Gate().Open() {
			t.Error("the renewal between two outages did not count")
		}
		time.Sleep(time.Second)
		if k.Gate().Open() {
			t.Error("open a term after the last renewal")
		}
		out.Store(false)
		<-k.Gate().Opened() // nobody else came: it goes on
	})
}

func TestKeeperEndsWithItsContextWhileNobodyCanBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out atomic.Bool
		s := &failovertest.Store{Before: func(ctx context.Context, _ string) error {
			if !out.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		k := keeperOn(t, s, "a", time.Second, nil)
		stop := run(t, k)
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		out.Store(true)
		time.Sleep(10 * time.Second)
		stop()
	})
}

// An answer that comes late does not count for longer than one that comes at
// once.
func TestLateAnswerCountsFromItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &failovertest.Store{After: func(_ context.Context, op string) error {
			if op == "swap" {
				time.Sleep(900 * time.Millisecond)
			}
			return nil
		}}
		k := keeperOn(t, s, "a", time.Second, nil)
		begin := time.Now()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if want := begin.Add(time.Second - failover.Margin(time.Second)); !k.Until().Equal(want) {
			t.Errorf("until %v after the request, want %v", k.Until().Sub(begin), want.Sub(begin))
		}
	})
}

func TestDeposedKeeperShutsItsGateAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(failovertest.Store)
		lost := make(chan uint64, 1)
		a := keeperOn(t, s, "a", time.Second, func(generation uint64, why error) {
			if !errors.Is(why, failover.ErrRefused) {
				t.Error(why)
			}
			lost <- generation
		})
		b := keeperOn(t, s, "b", time.Second, nil)
		if _, err := a.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if g, err := b.Acquire(t.Context(), 1); g != 2 || err != nil { // a does not renew: it is stopped
			t.Fatal(g, err)
		}
		if a.Gate().Open() || !b.Gate().Open() {
			t.Error("the wrong gate is open")
		}
		defer run(t, a)()
		if g := <-lost; g != 1 {
			t.Errorf("lost generation %d", g)
		}
		if a.Gate().Open() || a.Generation() != 0 {
			t.Error("a goes on")
		}
		if _, err := a.Acquire(t.Context(), 1); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("%v, want a refusal", err)
		}
	})
}

// An arbiter that refuses a renewal, and cannot say or do more, is asked again, and has
// time to breathe.
func TestAKeeperThatIsRefusedForNoReasonAsksNowAndThen(t *testing.T) {
	for _, fails := range []string{"load", "swap"} {
		t.Run(fails, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &halfArbiter{Arbiter: failover.NewStoreArbiter(new(failovertest.Store)), fails: fails}
				k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: a, Holder: "a", Term: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				a.often = cancel
				if _, err := k.Acquire(ctx, 0); err != nil {
					t.Fatal(err)
				}
				a.out.Store(true)
				done := make(chan struct{})
				go func() { defer close(done); k.Run(ctx) }()
				time.Sleep(10 * time.Second)
				if n := a.asked.Load(); n < 10 || n > 200 {
					t.Errorf("in 10 terms it asked %d times", n)
				}
				if k.Generation() != 1 {
					t.Errorf("it holds generation %d", k.Generation())
				}
				cancel()
				<-done
			})
		})
	}
}

// A halfArbiter refuses renewals, as if its keeper had claimed the next generation, and
// fails in what it is asked then.
type halfArbiter struct {
	failover.Arbiter
	fails string // load: the record; swap: a claim
	out   atomic.Bool
	asked atomic.Int64
	often func() // called where it is asked without end
}

func (a *halfArbiter) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if !a.out.Load() {
		return a.Arbiter.Renew(ctx, g, note)
	}
	if a.asked.Add(1) > 1000 {
		a.often()
	}
	return failover.Grant{}, failover.ErrRefused
}

func (a *halfArbiter) Record(ctx context.Context) (failover.Record, error) {
	r, err := a.Arbiter.Record(ctx)
	if a.out.Load() {
		if a.fails == "load" {
			return r, errors.New("connection reset")
		}
		r.Generation++
	}
	return r, err
}

func (a *halfArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if a.out.Load() {
		return failover.Grant{}, errors.New("connection reset")
	}
	return a.Arbiter.Acquire(ctx, c)
}

func TestLostAnswerOfAClaimIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		swaps := 0
		s := &failovertest.Store{After: func(_ context.Context, op string) error {
			if op == "swap" {
				if swaps++; swaps == 1 {
					return errors.New("connection reset")
				}
			}
			return nil
		}}
		k := keeperOn(t, s, "a", time.Second, nil)
		if g, err := k.Acquire(t.Context(), 0); g != 1 || err != nil {
			t.Errorf("generation %d, %v", g, err)
		}
		if h := s.History(); len(h) != 1 {
			t.Errorf("%d grants", len(h))
		}
	})
}

func TestOnlyTheGenerationThatIsMeantIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := keeper(t, time.Second)
		defer run(t, k)()
		for after := range uint64(2) {
			if _, err := k.Acquire(t.Context(), after); err != nil {
				t.Fatal(err)
			}
		}
		for _, generation := range []uint64{0, 1, 3} {
			if err := k.ReleaseGeneration(t.Context(), generation, "over"); !errors.Is(err, failover.ErrRefused) || !k.Gate().Open() {
				t.Errorf("generation %d: %v, the gate is open: %t", generation, err, k.Gate().Open())
			}
		}
		if r, _ := s.Load(t.Context()); !r.Held() || r.Generation != 2 {
			t.Errorf("%+v", r)
		}
		if err := k.ReleaseGeneration(t.Context(), 2, "over"); err != nil || k.Gate().Open() {
			t.Errorf("%v, the gate is open: %t", err, k.Gate().Open())
		}
		if r, _ := s.Load(t.Context()); r.Held() {
			t.Errorf("%+v", r)
		}
	})
}

func TestReleaseShutsTheGateOfAnOperatorsWordToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := keeper(t, time.Second)
		defer run(t, k)()
		k.Fenced(4)
		if !k.Gate().Open() {
			t.Fatal("the gate is shut after Fenced")
		}
		if err := k.Release(t.Context(), "over"); err != nil || k.Gate().Open() {
			t.Errorf("%v, the gate is open: %t", err, k.Gate().Open())
		}
	})
}

func TestReleaseShutsTheGateBeforeTheArbiterKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k *failover.Keeper
		releasing := false
		s := &failovertest.Store{Before: func(_ context.Context, op string) error {
			if releasing && op == "swap" && k.Gate().Open() {
				t.Error("the gate was open when the release was sent")
			}
			return nil
		}}
		k = keeperOn(t, s, "a", time.Second, nil)
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		releasing = true
		if err := k.Release(t.Context(), "over to you"); err != nil {
			t.Fatal(err)
		}
		if err := k.Release(t.Context(), ""); err != nil {
			t.Errorf("what is not held is released: %v", err)
		}
		if r, _ := s.Load(t.Context()); r.Held() || r.Note != "over to you" {
			t.Errorf("%+v", r)
		}
	})
}

func TestPromiseKeepsTheGateOpenWithoutAnArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := keeper(t, time.Second)
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(500 * time.Millisecond)
			k.Promised(1, time.Now(), time.Second)
			if !k.Gate().Open() {
				t.Fatal("shut while the follower promises")
			}
		}
		k.Drop()
		k.Promised(1, time.Now(), time.Second)
		if k.Gate().Open() {
			t.Error("a promise opened the gate of what was dropped")
		}
	})
}

// A host that goes on alone acquires the next generation while a renewal of the
// present one is under way: that is refused then, and deposes nobody.
func TestOwnClaimThatOvertakesARenewalDeposesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Bool
		s := &failovertest.Store{
			Before: func(_ context.Context, op string) error {
				if op == "load" {
					time.Sleep(5 * time.Millisecond) // so that the two overlap
				}
				return nil
			},
			After: func(_ context.Context, op string) error {
				if lose.Load() && op == "swap" {
					return errors.New("connection reset")
				}
				return nil
			},
		}
		k := keeperOn(t, s, "a", 30*time.Millisecond, func(g uint64, err error) { t.Errorf("deposed of %d: %v", g, err) })
		defer run(t, k)()
		for after := range uint64(100) {
			if g, err := k.Acquire(t.Context(), after); g != after+1 || err != nil {
				t.Fatal(g, err)
			}
			time.Sleep(time.Duration(after%13) * time.Millisecond)
		}
		// And a claim that was given up, whose answer was lost.
		lose.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Millisecond)
		defer cancel()
		if _, err := k.Acquire(ctx, 100); err == nil {
			t.Fatal("its answer was not lost")
		}
		lose.Store(false)
		time.Sleep(time.Second)
		if k.Generation() != 101 || !k.Gate().Open() {
			t.Errorf("generation %d, open %v", k.Generation(), k.Gate().Open())
		}
	})
}

func TestFencedOpensTheGateBeforeTheArbiterIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := keeper(t, time.Second)
		defer run(t, k)()
		other := keeperOn(t, s, "b", time.Second, nil)
		if _, err := other.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if g := k.Fenced(1); g != 2 || !k.Gate().Open() {
			t.Errorf("generation %d, the gate is open: %v", g, k.Gate().Open())
		}
		if g, err := k.Acquire(t.Context(), 1); g != 2 || err != nil {
			t.Fatal(g, err)
		}
		time.Sleep(10 * time.Second)
		if r, _ := s.Load(t.Context()); r.Generation != 2 || !k.Gate().Open() {
			t.Errorf("%+v, the gate is open: %v", r, k.Gate().Open())
		}
	})
}

func TestKeeperRefusesWhatCannotWork(t *testing.T) {
	s := failover.NewStoreArbiter(new(failovertest.Store))
	for name, c := range map[string]failover.KeeperConfig{
		"no arbiter": {Holder: "a"},
		"no name":    {Arbiter: s},
		"short term": {Arbiter: s, Holder: "a", Term: failover.MinTerm - 1},
	} {
		if _, err := failover.NewKeeper(c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	k, _ := keeper(t, time.Second)
	if err := k.SetNote(string(make([]byte, failover.MaxNote+1))); !errors.Is(err, failover.ErrClaim) {
		t.Errorf("a long note: %v", err)
	}
}
