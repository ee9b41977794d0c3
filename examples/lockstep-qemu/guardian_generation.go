package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
)

// found queries the state of the guest: one that is in COLO was protected by an earlier
// guardian. It acquires the guest for this host at the arbiter.
func (g *guardian) found(ctx context.Context) (standby.GuardState, error) {
	var now progress
	answers, enough := context.WithTimeout(ctx, 2*g.slowness())
	defer enough()
	if err := g.monitor().Do(answers, "query-migrate", nil, &now); err != nil {
		return 0, err
	}
	state := standby.Unprotected
	if now.Status == "colo" {
		state = standby.Protected
		g.received()
		g.set(func() { g.protects = true })
		g.say("found       the guest is in COLO already", map[string]any{"found": "colo"})
	}
	// Whoever ran before may have ended between the guest's state and its network's.
	if _, err := holdOutput(answers, g.monitor(), state == standby.Protected); err != nil {
		return 0, err
	}
	why := "there was no standby yet" // for who asks before anything happens
	if state == standby.Protected {
		why = "it was found so: the standby has the guest"
	}
	if g.arb == nil {
		if state == standby.Protected {
			g.generation = 0 // the standby knows
		}
		g.says(state, why)
		return state, nil
	}
	ask, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := g.arb.Record(ask)
	if err != nil {
		return 0, fmt.Errorf("the arbiter: %w", err)
	}
	if r.Held() && r.Token != g.token {
		if state == standby.Protected {
			err = g.order(ctx, "stop", nil)
		}
		return 0, errors.Join(err, fmt.Errorf("the arbiter says that %s has the guest, generation %d", r.Holder, r.Generation))
	}
	after := r.Generation
	if r.Held() {
		after--
	}
	if state == standby.Protected {
		if err := g.hold(ask, after); err != nil {
			return 0, err
		}
		g.says(state, why)
		return state, nil
	}
	grant, err := g.arb.Acquire(ask, failover.Claim{Holder: g.holder, Token: g.token, After: after, Note: "unprotected"})
	if err != nil {
		return 0, fmt.Errorf("the arbiter: %w", err)
	}
	g.generation = grant.Generation
	g.says(state, why)
	return state, nil
}

// hold asks for a generation with a deadline: a standby is about to follow it, or
// does.
func (g *guardian) hold(ctx context.Context, after uint64) error {
	g.free()
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: g.arb, Holder: g.holder, Token: g.token, Term: g.term,
		Lost:   func(_ uint64, err error) { g.tellWhile(run, standby.Refused, err.Error()) },
		Failed: func(err error) { g.p.warn("arbiter: %v", err) },
	})
	if err != nil {
		cancel()
		return err
	}
	generation, err := k.Acquire(ctx, after)
	if err != nil {
		cancel()
		return fmt.Errorf("the arbiter: %w", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); k.Run(run) }()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keeper, g.generation = k, generation
	g.drop = func() { cancel(); <-done }
	return nil
}

// free ends the renewals: what is held has no deadline from now on, or is over.
func (g *guardian) free() {
	g.mu.Lock()
	drop := g.drop
	g.keeper, g.drop = nil, nil
	g.mu.Unlock()
	if drop != nil {
		drop()
	}
}

// next asks for the guest's next generation, for good: the copy that a standby has
// is old from then on. It asks until there is an answer.
func (g *guardian) next(ctx context.Context, note string) error {
	g.mu.Lock()
	after := g.generation
	g.mu.Unlock()
	if g.arb == nil {
		g.mu.Lock()
		g.generation = after + 1
		g.mu.Unlock()
		return nil
	}
	k, err := failover.NewKeeper(failover.KeeperConfig{Arbiter: g.arb, Holder: g.holder, Token: g.token, Term: -1})
	if err == nil {
		err = k.SetNote(note)
	}
	if err != nil {
		return err
	}
	generation, err := k.Acquire(ctx, after)
	if err != nil {
		return err
	}
	g.free()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.generation = generation
	return nil
}

// holds reports whether this host may let the guest run.
func (g *guardian) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.keeper == nil || time.Now().Add(3*tick).Before(g.keeper.Until())
}

// short returns the text of an error, short enough for a note at the arbiter.
func short(err error) string {
	text := oneLine(err)
	return text[:min(len(text), 500)]
}

// answered asks for the next generation until there is an answer, and tells guard the answer:
// the guest may be standing until then.
func (g *guardian) answered(ctx context.Context, note string) {
	if !g.takesOrders(ctx) {
		return
	}
	for {
		err := g.next(ctx, note)
		switch {
		case err == nil:
			g.tell(standby.Granted, "")
			return
		case errors.Is(err, failover.ErrRefused):
			g.tell(standby.Refused, err.Error())
			return
		case ctx.Err() != nil:
			return
		}
		g.p.warn("arbiter: %v", err)
		note = "" // it may be what was wrong
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}
