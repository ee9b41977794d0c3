package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
)

// A QEMU that hangs may go on at any time, so that nobody else may run its guest. -fence makes sure that it does not:
// it is a command of the operator's, run when the QEMU has answered nothing in band for -fence-after. It is run only
// while this host asks whose the guest is, or stops it for the standby, and the standby answers that it has a copy
// of this generation: the end of a QEMU whose guest nobody else has would be the guest's.

// errFenced says that the guest's QEMU has been ended by -fence.
var errFenced = errors.New("-fence has ended the QEMU")

// How long a QEMU that was killed may take until it has ended, and for how long an interrupt waits for a command
// that is under way.
const (
	fencedEnds = 5 * time.Second
	fenceGrace = 5 * time.Second
)

// silence is how long a QEMU has answered nothing in band, for -fence.
type silence struct {
	since time.Time
	alone bool // it was said that the standby is not known to have the guest
}

// fenceDue runs -fence if the QEMU has been silent for long enough, and then reports whether it has ended. A command
// that fails is run again after as long once more.
func (g *guardian) fenceDue(ctx context.Context, s *silence) bool {
	if g.fence == "" || time.Since(s.since) < g.fenceAfter {
		return false
	}
	if g.lastWord() {
		return true
	}
	if !g.copyThere() {
		if !s.alone {
			s.alone = true
			g.p.warn("-fence is not run: the standby does not answer that it has a copy of the guest, whose end this would be")
		}
		return false
	}
	s.alone = false
	done := make(chan struct{})
	g.mu.Lock()
	if ctx.Err() != nil || g.fencing != nil { // the guardian ends, and has said how the guest is left; or somebody was quicker
		g.mu.Unlock()
		return false
	}
	g.fencing = done
	g.mu.Unlock()
	defer close(done)
	defer g.set(func() { g.fencing = nil })
	took := time.Since(s.since).Truncate(time.Second)
	g.say(fmt.Sprintf("fencing     %s: the QEMU has answered nothing in band for %v", g.fence, took), map[string]any{"fencing": map[string]any{"command": g.fence, "seconds": took.Seconds()}})
	err := g.runFence(ctx, took)
	s.since = time.Now()
	if err != nil {
		g.p.warn("%v. Nothing is decided; it is run again if the QEMU answers nothing for %v more", err, g.fenceAfter)
		g.p.object(map[string]any{"fenced": map[string]any{"error": err.Error()}})
		return false
	}
	g.p.object(map[string]any{"fenced": map[string]any{}})
	g.set(func() { g.dead, g.fenced = true, true })
	return true
}

// copyThere reports whether the standby has said lately that it has the guest.
func (g *guardian) copyThere() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.copied.IsZero() && time.Since(g.copied) < g.silence
}

// runFence runs -fence and makes sure that nobody listens at the QEMU's monitor any more.
func (g *guardian) runFence(ctx context.Context, took time.Duration) error {
	run, cancel := graced(ctx, fenceLimit, fenceGrace)
	defer cancel()
	if err := g.command.run(run, g.fence, "LOCKSTEP_QMP="+g.qmp, fmt.Sprintf("LOCKSTEP_SILENT=%d", int(took.Seconds()))); err != nil {
		return err
	}
	for end := time.Now().Add(fencedEnds); g.listens(run); {
		if !time.Now().Before(end) {
			return fmt.Errorf("-fence has succeeded, but somebody still listens at %s: it must succeed only when the QEMU has ended", g.qmp)
		}
		select {
		case <-time.After(tick):
		case <-run.Done():
		}
	}
	return nil
}

// listens reports whether there is a process that holds the QEMU's monitor open, whether it answers or not. A host
// that cannot be reached has none.
func (g *guardian) listens(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	network, address := qmp.Split(g.qmp)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err == nil {
		conn.Close()
	}
	return err == nil || errors.Is(err, syscall.EAGAIN) // its queue is full
}

// fencedDeath is what guard is told when -fence has ended the QEMU.
func (g *guardian) fencedDeath() news {
	return news{in: standby.Died, why: "it had hung, and -fence has ended it"}
}

// lastWord waits for a -fence that is under way, and reports whether one has ended the guest's QEMU.
func (g *guardian) lastWord() bool {
	g.mu.Lock()
	underWay := g.fencing
	g.mu.Unlock()
	if underWay != nil {
		<-underWay
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fenced
}
