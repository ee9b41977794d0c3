package main

import (
	"context"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
)

// QEMU waits for its standby without a bound, and between two checkpoints its guest runs meanwhile. A
// network that carries the control channel, and the migration no more, would leave the guest so for good, as
// protected, with a copy that gets older and older.

// received notes that the standby has received more of a checkpoint, or that protection has begun.
func (g *guardian) received() { g.set(func() { g.got = time.Now() }) }

// dues tells, until ctx ends, when the standby has received nothing for longer than there may be between
// two checkpoints.
func (g *guardian) dues(ctx context.Context) {
	t := time.NewTicker(max(g.silence/5, tick))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if g.late() <= g.silence {
			continue
		}
		if every, ok := g.checkpointDelay(ctx); ok && g.late() > every+g.silence {
			g.tellWhile(ctx, standby.Overdue, "does the connection of the migration still carry anything?")
		}
	}
}

// late returns for how long the standby has received nothing, 0 if the guest is not protected.
func (g *guardian) late() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.protects {
		return 0
	}
	return time.Since(g.got)
}

// checkpointDelay returns the time that the QEMU leaves between two checkpoints: somebody may have changed it.
func (g *guardian) checkpointDelay(ctx context.Context) (every time.Duration, ok bool) {
	var set struct {
		Delay *uint32 `json:"x-checkpoint-delay"`
	}
	ask, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := g.monitor().Do(ask, "query-migrate-parameters", nil, &set)
	if err != nil || set.Delay == nil {
		return 0, false
	}
	return time.Duration(*set.Delay) * time.Millisecond, true
}
