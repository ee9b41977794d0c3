package main

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/failover"
)

// protectAgain protects the guest anew, and tells guard whether that worked.
func (g *guardian) protectAgain(ctx context.Context) {
	g.released()
	g.mu.Lock()
	after := g.generation - 1
	g.exited, g.protects = false, false
	g.mu.Unlock()
	if g.arb != nil {
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := g.hold(ask, after)
		cancel()
		if err != nil {
			g.free()
			if errors.Is(err, failover.ErrRefused) {
				g.tell(standby.Refused, err.Error())
			} else if ctx.Err() == nil {
				g.tell(standby.Failed, err.Error())
			}
			return
		}
	}
	g.set(func() { g.word = standby.ControlMessage{Say: standby.SaidProtect, Generation: g.generation} })
	g.repeat()
	o := *g.protectOptions
	var asked, refused bool
	// What has been begun is given up only when the standby's copy cannot be gone
	// on with.
	o.giveUp = func(err error) error {
		ask := ctx
		if ctx.Err() != nil { // an interrupt must not leave the guest standing
			var cancel context.CancelFunc
			ask, cancel = context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
		}
		e := g.next(ask, short(err))
		asked, refused = true, errors.Is(e, failover.ErrRefused)
		return e
	}
	err := o.protectBy(ctx, g.monitor(), g.p)
	if err != nil && !asked { // it has not come to a migration, but nobody needs a deadline
		o.giveUp(err)
	}
	switch {
	case err == nil:
		g.received()
		g.set(func() { g.protects = true })
		g.tell(standby.InStep, "")
	case refused:
		g.tell(standby.Refused, err.Error())
	case ctx.Err() == nil:
		g.tell(standby.Failed, oneLine(err))
	}
}
