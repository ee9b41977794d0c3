package main

import (
	"context"
	"sync"
)

// together is a relay's guest whose checkpoints count only when some secondaries have
// them, too. It commits a checkpoint that is staged and checked before the primary is
// answered, passes it on and waits: until the primary has been told that the state is
// safe, nothing has left that the guest said since the state before, so the guest may
// still go on from either.
type together struct {
	*keeper
	r    *relayRun
	want int

	early bool   // what is staged was committed already
	asked uint64 // for which epoch that was done
	few   int    // how many have it, as was last said
}

// Prepare is the last step before the primary is answered; a session gives it
// as long as PeerTimeout.
func (g *together) Prepare(ctx context.Context, epoch uint64) error {
	if epoch == g.asked {
		return nil // a Group's Checkpoint prepares it again
	}
	if err := g.Copy.Flush(); err != nil {
		return err
	}
	if err := g.Copy.Commit(); err != nil {
		return err
	}
	g.early, g.asked = true, epoch
	in, err := g.Copy.Info()
	if err != nil {
		return err
	}
	g.say(g.reached(ctx, in.Epoch))
	return nil
}

// reached returns when as many secondaries as are wanted, or all that follow,
// have a checkpoint, and how many that are.
func (g *together) reached(ctx context.Context, epoch uint64) (n int) {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	has := make(chan bool, len(g.r.secondaries))
	following := 0
	for _, s := range g.r.secondaries {
		if s.follows() {
			following++
			asked.Go(func() { has <- s.reaches(ctx, epoch) })
		}
	}
	for ; following > 0 && n < g.want; following-- {
		if <-has {
			n++
		}
	}
	return n
}

// say prints when fewer secondaries than wanted follow, and when enough do again.
func (g *together) say(n int) {
	if n == g.few {
		return
	}
	g.few = n
	if n < g.want {
		g.s.p.warn("-sync %d: %d of the secondaries have the last checkpoint", g.want, n)
	} else {
		g.s.p.say("in step     %d secondaries have each checkpoint before the primary is answered", n)
	}
	g.s.p.object(map[string]any{"sync": map[string]int{"want": g.want, "have": n}})
}

// Flush and Commit have been done for all but the initial state.
func (g *together) Flush() error {
	if g.early {
		return nil
	}
	return g.Copy.Flush()
}

func (g *together) Commit() error {
	if g.early {
		g.early = false
		return nil
	}
	return g.Copy.Commit()
}

// The rest of a replication.Replicator: there is no disk here.

func (g *together) Start(context.Context) error              { return nil }
func (g *together) Checkpoint(context.Context, uint64) error { return nil }
func (g *together) Err() error                               { return nil }
func (g *together) Stop(context.Context, bool) error         { return nil }
