package main

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
)

// stopThenTell stops the guest, however long that takes, and then says so.
func (g *guardian) stopThenTell(ctx context.Context, why string) {
	quiet := silence{since: time.Now()}
	for ctx.Err() == nil {
		if g.halt(ctx) == nil {
			g.stopped(why)
			return
		}
		if g.fenceDue(ctx, &quiet) {
			n := g.fencedDeath()
			g.tellWhile(ctx, n.in, n.why)
			return
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
}

// stopped says that the guest was stopped for the standby's copy, and gives it back to the
// arbiter, which grants it to nobody else for as long as it is this host's.
func (g *guardian) stopped(why string) {
	g.set(func() { g.stopping = false })
	g.send(standby.SaidStopped, why)
	if g.arb == nil {
		return
	}
	g.all.Go(func() {
		g.free()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		g.mu.Lock()
		grant := failover.Grant{Generation: g.generation, Token: g.token}
		g.mu.Unlock()
		// Where nobody could be told, the grant ends with its term: it is not renewed.
		if err := g.arb.Release(ctx, grant, "stopped for the standby"); err != nil && !errors.Is(err, failover.ErrRefused) {
			g.p.warn("arbiter: %v", err)
		}
	})
}

// holdStill keeps a guest standing that an operator has stopped: QEMU has it run
// again at the end of each checkpoint. A new delay makes one at once, and the next
// one is weeks away; the delay is put back when the guest runs again.
func (g *guardian) holdStill(ctx context.Context) {
	if err := g.order(ctx, "migrate-set-parameters", map[string]any{"x-checkpoint-delay": uint32(1<<32 - 1)}); err != nil && ctx.Err() == nil {
		g.p.warn("stop: %v", err)
	}
	g.stopAgain(ctx)
}

// stopAgain stops a guest that a checkpoint, or the end of COLO, has run again, and
// returns when it has stood for a while. What the monitor says of it meanwhile is
// not the operator's doing.
func (g *guardian) stopAgain(ctx context.Context) {
	defer g.set(func() { g.settling, g.settled = g.settling-1, time.Now() }) // as expectStop does
	quiet := time.Now()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && time.Since(quiet) < 10*tick; {
		var st struct{ Status string }
		ask, cancel := context.WithTimeout(ctx, time.Second)
		err := g.monitor().Do(ask, "query-status", nil, &st)
		if err == nil && st.Status == "running" {
			err = g.monitor().Do(ask, "stop", nil, nil)
		}
		cancel()
		if err != nil || st.Status != "paused" {
			quiet = time.Now()
		}
		select {
		case <-time.After(tick / 2):
		case <-ctx.Done():
			return
		}
	}
}

// runs tells that the guest ran at a time.
func (g *guardian) runs(ctx context.Context, at time.Time) {
	g.mu.Lock()
	ours, still := g.settling > 0 || at.Before(g.settled), g.still
	g.ran = true
	if !ours {
		g.still = false
	}
	g.mu.Unlock()
	if ours {
		return
	}
	if still { // the operator's cont
		if err := g.order(ctx, "migrate-set-parameters", map[string]any{"x-checkpoint-delay": g.delay.Milliseconds()}); err != nil && ctx.Err() == nil {
			g.p.warn("%v", err)
		}
	}
	g.tellSeen(standby.Runs, at)
}
