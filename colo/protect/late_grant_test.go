package protect

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// lateStore is a store whose swaps hang, and are made then, whoever has given them up.
type lateStore struct {
	failover.Store
	g *hang
}

func (s lateStore) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if err := s.g.wait(ctx); err != nil {
		return false, err
	}
	return s.Store.Swap(context.WithoutCancel(ctx), old, next)
}

// A host has left when its arbiter grants it the guest at last. Nobody would have that for a term.
func TestAGrantThatComesWhenTheHostHasLeftIsGivenBack(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, g := pairThatHangs(w, "b", "swaps", false)
		g.on.Store(true)
		a.kill(false)
		a.bury()
		b.is(Asking)
		time.Sleep(3 * w.term)
		b.stop(errHalt)
		time.Sleep(time.Minute)
		if r, err := w.store.Load(t.Context()); err != nil || r.Generation != 1 || r.Holder != "a" {
			t.Errorf("before the answer: %+v, %v", r, err)
		}
		close(g.over)
		b.bury()
		if r, err := w.store.Load(t.Context()); err != nil || r.Generation != 2 || r.Held() {
			t.Errorf("after it: %+v, %v", r, err)
		}
	})
}

// One that will ask again finds that it was granted what it had asked for.
func TestAGrantThatComesLateIsUsedByAHostThatIsToStartItsGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a := s.start("a", true, nil)
		a.is(Alone)
		s.write("a", "of a")
		s.powerCut(a)
		g := &hang{over: make(chan struct{})}
		g.on.Store(true)
		a = s.start("a", false, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(lateStore{s.store, g}) })
		time.Sleep(time.Minute)
		a.is(Waiting)
		close(g.over)
		a.is(Alone)
		if i := a.job.Query(); i.Generation != 2 || s.read("a") != "of a" {
			t.Errorf("generation %d, the disk says %q", i.Generation, s.read("a"))
		}
		a.halt()
	})
}

// Only what nobody here uses is given back.
func TestAGrantThatComesLateIsGivenBackWhereNobodyUsesIt(t *testing.T) {
	for name, c := range map[string]struct {
		state  State
		claims bool   // the guest is to be started here
		asks   bool   // somebody waits for the same answer
		holds  uint64 // by the keeper
		others bool   // have the guest by now
		back   bool
	}{
		"a host that waits":                                 {state: Waiting, back: true},
		"a host that follows another primary":               {state: Following, back: true},
		"a host that follows, of whom others know better":   {state: Following, others: true},
		"a host that has left":                              {state: Concluded, back: true},
		"one that has left while it was to start the guest": {state: Concluded, claims: true, back: true},
		"a host that is to start the guest":                 {state: Waiting, claims: true},
		"a host that asks again":                            {state: Waiting, asks: true},
		"a host that asks":                                  {state: Asking},
		"a host that goes on by an operator's word":         {state: TakingOver},
		"a host that has just begun":                        {state: Created},
		"a primary, whose verb was given up":                {state: Protected, holds: 1},
		"one that has lost its secondary since":             {state: Alone, holds: 1},
		"one that has left, and gives all back":             {state: Concluded, holds: 2},
		"a host that waits with the grant":                  {state: Waiting, holds: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := new(failovertest.Store)
				arbiter := failover.NewStoreArbiter(store)
				if err := (&world{t: t, store: store}).begun(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				late, err := arbiter.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "a", After: 1, Term: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				if c.others {
					if _, err := arbiter.Acquire(t.Context(), failover.Claim{Holder: "b", Token: "b", After: 2, Term: time.Hour}); err != nil {
						t.Fatal(err)
					}
				}
				before, err := store.Load(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				j := &Job{cfg: Config{Host: "a", Term: time.Second}, claims: c.claims}
				j.m.state = c.state
				if j.keeper, err = failover.NewKeeper(failover.KeeperConfig{Arbiter: arbiter, Holder: "a", Token: "a", Term: time.Second}); err != nil {
					t.Fatal(err)
				}
				if c.holds > 0 {
					j.keeper.Fenced(c.holds - 1)
				}
				if c.asks {
					j.asking.begins(&outsideCall{counts: true})
				}
				j.tooLate(arbiter, late)
				r, err := store.Load(t.Context())
				if back := r.Generation == 2 && !r.Held(); err != nil || back != c.back || !c.back && r != before {
					t.Errorf("%+v, %v", r, err)
				}
				if err := j.lastErr; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An arbiter that cannot be told that a late grant is not needed keeps the guest for the term, and
// LastError says so.
func TestAGrantThatComesLateAndCannotBeGivenBackIsToldOf(t *testing.T) {
	arbiter := failover.NewStoreArbiter(brokenStore{})
	j := &Job{cfg: Config{Host: "a", Term: time.Second}}
	j.m.state = Concluded
	var err error
	if j.keeper, err = failover.NewKeeper(failover.KeeperConfig{Arbiter: arbiter, Holder: "a"}); err != nil {
		t.Fatal(err)
	}
	j.tooLate(arbiter, failover.Grant{Generation: 2, Token: "a", Term: time.Second})
	if !errors.Is(j.lastErr, errNoRoute) {
		t.Error(j.lastErr)
	}
}

// brokenStore is a store that nobody reaches.
type brokenStore struct{ failover.Store }

func (brokenStore) Load(context.Context) (failover.Record, error) {
	return failover.Record{}, errNoRoute
}
