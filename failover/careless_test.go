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

// A careless is an arbiter whose answers are changed on their way.
type careless struct {
	failover.Arbiter
	spoil             func(*failover.Grant)
	acquired, renewed atomic.Bool // whether those answers are
	renewals          atomic.Int64
}

func (c *careless) Acquire(ctx context.Context, claim failover.Claim) (failover.Grant, error) {
	g, err := c.Arbiter.Acquire(ctx, claim)
	if c.acquired.Load() {
		c.spoil(&g)
	}
	return g, err
}

func (c *careless) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	c.renewals.Add(1)
	g, err := c.Arbiter.Renew(ctx, g, note)
	if c.renewed.Load() {
		c.spoil(&g)
	}
	return g, err
}

// A host's own Arbiter may leave a field of a grant out. That opens no gate, for ever or at all, and
// is not asked again without a pause.
func TestAGrantThatNoArbiterMayGiveOpensNothing(t *testing.T) {
	for name, spoil := range map[string]func(*failover.Grant){
		"nothing at all":      func(g *failover.Grant) { *g = failover.Grant{} },
		"an old generation":   func(g *failover.Grant) { g.Generation-- },
		"no end":              func(g *failover.Grant) { g.Term = 0 },
		"an end before it is": func(g *failover.Grant) { g.Term = -time.Second },
		"next to no term":     func(g *failover.Grant) { g.Term = time.Nanosecond },
		"no beginning":        func(g *failover.Grant) { g.Sent = time.Time{} },
		"one that is to come": func(g *failover.Grant) { g.Sent = g.Sent.Add(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failed atomic.Int64
				c := &careless{Arbiter: failover.NewStoreArbiter(new(failovertest.Store)), spoil: spoil}
				c.acquired.Store(true)
				k, err := failover.NewKeeper(failover.KeeperConfig{
					Arbiter: c, Holder: "a", Term: time.Second, Failed: func(error) { failed.Add(1) },
					Lost: func(uint64, error) { t.Error("lost") },
				})
				if err != nil {
					t.Fatal(err)
				}
				defer run(t, k)()
				if g, err := k.Acquire(t.Context(), 0); err == nil || k.Gate().Open() {
					t.Errorf("generation %d, and the gate is open: %v", g, k.Gate().Open())
				}
				c.acquired.Store(false)
				if _, err := k.Acquire(t.Context(), 0); err != nil { // it finds its own grant
					t.Fatal(err)
				}
				synctest.Wait()
				c.renewed.Store(true)
				time.Sleep(time.Minute)
				synctest.Wait()
				if k.Gate().Open() {
					t.Error("the gate is open a minute after the last grant that counts")
				}
				if n := c.renewals.Load(); n > 700 || failed.Load() != n {
					t.Errorf("%d renewals, of which %d have failed", n, failed.Load())
				}
			})
		})
	}
}

// A grant that counts from a time of day would last for longer if the clock were set back. (In a
// bubble there is no other time.)
func TestAGrantThatCountsByTheClockOfTheDayOpensNothing(t *testing.T) {
	c := &careless{Arbiter: failover.NewStoreArbiter(new(failovertest.Store)), spoil: func(g *failover.Grant) { g.Sent = g.Sent.Round(0) }}
	c.acquired.Store(true)
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: c, Holder: "a", Term: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := k.Acquire(t.Context(), 0); err == nil || k.Gate().Open() {
		t.Errorf("generation %d, and the gate is open: %v", g, k.Gate().Open())
	}
	c.acquired.Store(false)
	if _, err := k.Acquire(t.Context(), 0); err != nil || !k.Gate().Open() {
		t.Errorf("one that does not opens nothing: %v", err)
	}
}

// A watchful is an arbiter that looks at its holder's gate when it is given the guest back.
type watchful struct {
	failover.Arbiter
	open func() bool
	was  []bool
}

func (w *watchful) Release(ctx context.Context, g failover.Grant, note string) error {
	w.was = append(w.was, w.open())
	return w.Arbiter.Release(ctx, g, note)
}

// As soon as the arbiter has the guest back another host may have it.
func TestTheGateIsShutBeforeTheGuestIsGivenBack(t *testing.T) {
	for what, release := range map[string]func(*failover.Keeper, context.Context, uint64) error{
		"Release":           func(k *failover.Keeper, ctx context.Context, _ uint64) error { return k.Release(ctx, "") },
		"ReleaseGeneration": func(k *failover.Keeper, ctx context.Context, g uint64) error { return k.ReleaseGeneration(ctx, g, "") },
	} {
		w := &watchful{Arbiter: failover.NewStoreArbiter(new(failovertest.Store))}
		k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: w, Holder: "a", Term: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		w.open = k.Gate().Open
		g, err := k.Acquire(t.Context(), 0)
		if err != nil || !k.Gate().Open() {
			t.Fatal(err)
		}
		if err := release(k, t.Context(), g); err != nil || len(w.was) != 1 || w.was[0] || k.Gate().Open() {
			t.Errorf("%s: %v; the gate was open when the arbiter was told: %v", what, err, w.was)
		}
	}
}
