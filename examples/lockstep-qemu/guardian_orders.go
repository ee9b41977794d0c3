package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// The words of a guardian whose QEMU does not do what it is told.
const (
	takesNone   = "the QEMU takes no orders, not even out of band"
	takesNoneIn = "the QEMU takes no orders but out of band, though it waits for its standby no more"
)

// takesOrders returns true when the QEMU has answered in band, however late, and false when ctx ends.
// Before it has, it cannot be told to run on without its standby. Were the copy that the standby has made old all
// the same, and the QEMU killed next, as one that hangs is, the guest would be lost.
func (g *guardian) takesOrders(ctx context.Context) bool {
	defer g.set(func() { g.hangs = "" })
	said := make(map[string]bool)
	quiet := silence{since: time.Now()}
	for {
		m := g.monitor()
		if m == nil { // there is no QEMU to be asked
			return true
		}
		err := g.heeds(ctx, m, said, &quiet)
		if answered(err) {
			return true
		}
		if errors.Is(err, errFenced) || g.fenceDue(ctx, &quiet) {
			n := g.fencedDeath()
			g.tellWhile(ctx, n.in, n.why)
			return false
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return false
		}
	}
}

// heeds returns what a QEMU answers to a question in band, or why nothing comes over this connection any
// more. The question is asked once, so that the answer of a QEMU that is slow counts. While there is none,
// what the QEMU's main loop may wait for is ended out of band: its connections to the standby, which is
// given up in any case by then.
func (g *guardian) heeds(ctx context.Context, m *qmp.Client, said map[string]bool, quiet *silence) error {
	ask, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- m.Do(ask, "query-status", nil, nil) }() // joined by the answer
	for first := true; ; first = false {
		select {
		case err := <-answer:
			return err
		case <-time.After(time.Second):
		}
		words := takesNoneIn
		switch err := g.heedsOOB(ctx, m); {
		case errors.Is(err, context.DeadlineExceeded):
			words = takesNone
		case !answered(err): // the connection is over, or ctx
			cancel()
			return <-answer
		default:
			g.cut(ctx)
			if first { // what it waited for has just ended
				continue
			}
		}
		if g.set(func() { g.hangs = words }); !said[words] {
			said[words] = true
			then := ""
			if g.fence != "" {
				then = fmt.Sprintf("; -fence does so after %v", g.fenceAfter)
			}
			g.p.warn("%s (%s): nothing is decided until it does. If it hangs, kill it, and the guest goes on at the standby%s", words, g.qmp, then)
		}
		select {
		case err := <-answer: // in the last moment
			return err
		default:
		}
		if g.fenceDue(ctx, quiet) {
			cancel()
			<-answer
			return errFenced
		}
	}
}

// heedsOOB returns what a QEMU answers to a question out of band. Of a monitor that has no such way, nobody
// can say whether it would.
func (g *guardian) heedsOOB(ctx context.Context, m *qmp.Client) error {
	if !m.OOB {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return m.DoOOB(ctx, "query-yank", nil, nil)
}

// cut shuts all of the QEMU's connections to the standby, at the same time.
func (g *guardian) cut(ctx context.Context) {
	var yanks sync.WaitGroup
	defer yanks.Wait()
	g.yankDisks(ctx, &yanks)
	yanks.Go(func() { g.yank(ctx, map[string]string{"type": "migration"}) })
}
