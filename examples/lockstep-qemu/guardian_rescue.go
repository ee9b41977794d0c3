package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// rescue lets the guest run on without its standby.
func (g *guardian) rescue(ctx context.Context) error {
	g.mu.Lock()
	g.protects = false
	g.status.Rescued++
	still := g.still
	if still {
		g.settling++
	}
	g.mu.Unlock()
	stand := func() {
		if still { // for an operator, who wants it to stand: see holdStill
			g.stopAgain(ctx)
		}
	}
	// The guest waits for a write that waits for the standby's copy. All are tried at a time: a QEMU that
	// hangs keeps this from what else there is to do, and systemd's watchdog from its word.
	var yanks sync.WaitGroup
	g.yankDisks(ctx, &yanks)
	yanks.Wait()
	if len(g.disks) > 0 && g.releasing.TryLock() { // otherwise they are being given up already
		defer g.all.Go(func() { defer g.releasing.Unlock(); g.unmirrored(ctx, stand) })
	} else {
		defer g.all.Go(stand)
	}
	if !g.parting.TryLock() { // it is being tried again already
		return nil
	}
	err := g.part(ctx)
	if err == nil {
		g.parting.Unlock()
		return nil
	}
	g.all.Go(func() { // until it has been taken: nothing else has the guest run
		defer g.parting.Unlock()
		for ctx.Err() == nil && g.part(ctx) != nil {
			select {
			case <-time.After(tick):
			case <-ctx.Done():
			}
		}
	})
	return err
}

// part makes the QEMU leave COLO, if it is in it, and lets the packets of the guest leave at
// once.
func (g *guardian) part(ctx context.Context) error {
	if err := g.lostHeartbeat(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := holdOutput(ctx, g.monitor(), false)
	return err
}

// A QEMU says that it is in COLO a moment before it can be told to leave it: in between the
// order ends QEMU 7.2 by an assertion of its own ("qemu_event_set"). Its guest stands in
// finish-migrate then, as it does from there until its standby has answered, so that nothing
// says when the moment is over. It is a short one: moment is many times as long.
const moment = 100 * time.Millisecond

// entersCOLO returns when a QEMU that may be about to enter COLO has had its moment, or is
// not about to.
func entersCOLO(ctx context.Context, m *qmp.Client) {
	ctx, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	for {
		var st struct{ Status string }
		if m.Do(ctx, "query-status", nil, &st) != nil || st.Status != "finish-migrate" {
			return // or it does not answer, and waits for what it is about to be told
		}
		select {
		case <-time.After(moment / 10):
		case <-ctx.Done():
			return
		}
	}
}

// lostHeartbeat makes the QEMU leave COLO, if it is in it.
func (g *guardian) lostHeartbeat(ctx context.Context) error {
	entersCOLO(ctx, g.monitor())
	err := g.order(ctx, "x-colo-lost-heartbeat", nil)
	if errors.Is(err, context.DeadlineExceeded) {
		// The monitor waits for a migration that waits for the standby.
		g.yank(ctx, map[string]string{"type": "migration"})
		err = g.order(ctx, "x-colo-lost-heartbeat", nil)
	}
	var refused *qmp.Error
	if errors.As(err, &refused) { // it has left COLO already
		err = nil
	}
	return err
}

// yankDisks shuts the connections over which the disks are copied.
func (g *guardian) yankDisks(ctx context.Context, all *sync.WaitGroup) {
	for _, d := range g.disks {
		all.Go(func() { g.yank(ctx, map[string]string{"type": "block-node", "node-name": d.node()}) })
	}
}

// yank shuts a connection of the QEMU, out of band: its monitor may be waiting for
// it.
func (g *guardian) yank(ctx context.Context, instance map[string]string) {
	m := g.monitor()
	if !m.OOB {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var refused *qmp.Error
	err := m.DoOOB(ctx, "yank", map[string]any{"instances": []map[string]string{instance}}, nil)
	if err != nil && !errors.As(err, &refused) && ctx.Err() == nil {
		g.p.warn("%v", err)
	}
}

// unmirrored gives the copies of the disks up, once QEMU has left COLO and whatever
// stops the guest has been done: see mirror.
func (g *guardian) unmirrored(ctx context.Context, stand func()) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	g.hasLeft(ctx, g.monitor())
	stand()
	if err := g.unmirror(ctx, g.monitor()); err != nil && ctx.Err() == nil {
		g.p.warn("disks: %v", err)
	}
}

// released returns when nothing is left of the last protection: neither the disks' copies
// nor an order to part from its standby that the QEMU has not taken yet.
func (g *guardian) released() {
	g.releasing.Lock()
	defer g.releasing.Unlock()
	g.parting.Lock()
	defer g.parting.Unlock()
}
