package main

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
)

// ended tells the standby and the arbiter that the guest has ended. If it died they are told
// again and again until they have heard it.
func (g *guardian) ended(ctx context.Context, n news) (int, error) {
	defer stillAlive()()
	if g.arb != nil {
		if err := g.give(ctx, n); err != nil {
			g.p.warn("arbiter: %v", err)
		}
	}
	if g.control != "" {
		limit := ctx
		if n.in == standby.PlannedEnd {
			var cancel context.CancelFunc
			limit, cancel = context.WithTimeout(ctx, time.Minute)
			defer cancel()
		}
		if !g.heardOf(limit) {
			return exitFailed, errors.New("the standby could not be told that the guest has ended")
		}
	}
	if n.in == standby.Died {
		return exitGuest, errors.New("the guest's process is dead")
	}
	return exitOK, nil
}

// endedStopping tells the standby of the end of a guest that was being stopped for it: it waits for that word.
func (g *guardian) endedStopping(ctx context.Context, n news) {
	g.mu.Lock()
	stopping := g.stopping
	g.mu.Unlock()
	if !stopping {
		return
	}
	defer stillAlive()()
	why := "it was to be stopped, and has ended"
	if n.why != "" {
		why += ": " + n.why
	}
	g.stopped(why)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if g.control != "" && !g.heardOf(ctx) {
		g.p.warn("the standby could not be told that the guest has ended")
	}
}

// give tells the arbiter. A guest that has ended in good order is held for good, so that no
// copy of it is granted; one that has died is given back.
func (g *guardian) give(ctx context.Context, n news) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if n.in == standby.PlannedEnd {
		return g.next(ctx, "ended: "+n.why)
	}
	g.free()
	g.mu.Lock()
	grant := failover.Grant{Generation: g.generation, Token: g.token}
	g.mu.Unlock()
	return g.arb.Release(ctx, grant, "dead: "+n.why)
}

// heardOf waits until the standby has answered something that was sent after the
// last word.
func (g *guardian) heardOf(ctx context.Context) bool {
	g.mu.Lock()
	after := g.sent
	g.mu.Unlock()
	for {
		g.mu.Lock()
		there, connected := g.delivered > after, g.link != nil
		if !connected {
			after = g.sent // it is told again when it comes back
		}
		g.mu.Unlock()
		if there {
			return true
		}
		select {
		case <-g.told: // nothing matters any more
		case <-time.After(tick):
		case <-ctx.Done():
			return false
		}
	}
}

// leave ends a guardian whose guest goes on: at the standby, where it was given to it, and here
// otherwise. From then on nothing can tell a crash of the guest here from a planned end, so the
// guardian acquires it once more, without a deadline.
func (g *guardian) leave() error {
	g.mu.Lock()
	held, after, given := g.keeper != nil, g.generation-1, g.status.State == standby.StoodDown.String()
	g.mu.Unlock()
	g.free()
	if given { // and must not be taken from the standby
		g.p.warn("the guardian ends: the guest is the standby's; the one that is stopped here is to be ended")
		return nil
	}
	if _, words, _ := unanswering(g.owing(), g.slowness()); words != "" {
		g.p.warn("the guardian ends: the QEMU at %s %s; nobody has the guest go on here or at its standby, whatever becomes of it", g.qmp, words)
	} else {
		g.p.warn("the guardian ends: the guest goes on, and nobody lets it run on if its standby is lost")
	}
	if !held {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := g.arb.Acquire(ctx, failover.Claim{Holder: g.holder, Token: g.token, After: after, Note: "without a guardian"})
	return err
}
