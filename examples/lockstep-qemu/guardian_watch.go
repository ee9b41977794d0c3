package main

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// watcher tells what a monitor says, until ctx ends or the guest's process does.
type watcher struct {
	*guardian
	planned string // the reason of the SHUTDOWN that was seen
}

func (g *guardian) watch(ctx context.Context) {
	w := &watcher{guardian: g}
	for ctx.Err() == nil {
		m := g.monitor()
		part, cancel := context.WithCancel(ctx)
		var both sync.WaitGroup
		both.Go(func() { defer cancel(); g.poll(part, m) })
		both.Go(func() { defer cancel(); w.events(part, m) })
		both.Wait()
		// What came before the end, and was not looked at.
		rest, cancel := context.WithTimeout(ctx, time.Second)
		w.events(rest, m)
		cancel()
		m.Close()
		if w.planned != "" {
			g.set(func() { g.dead = true })
			return
		}
		if ctx.Err() != nil {
			return
		}
		for lost, gone, told := true, false, false; lost; {
			err := g.connect(ctx)
			switch {
			case err == nil:
				lost = false
				g.p.warn("the monitor's connection was lost, and is there again")
				continue
			case errors.Is(err, syscall.ECONNREFUSED): // the end of the process has closed its socket
				g.set(func() { g.dead = true })
				g.tell(standby.Died, "nobody listens at its monitor any more, and it has told of no shutdown; what QEMU has printed says why")
				return
			case ctx.Err() != nil:
			case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EAGAIN): // somebody listens
				g.tell(standby.Stands, "its monitor does not answer")
				if !told {
					told = true
					g.p.warn("the monitor's connection was lost, and another is not answered: %v", err)
				}
			case g.owing() == nil: // -fence has ended it, and tells so
				return
			case errors.Is(err, fs.ErrNotExist) && !gone:
				// A QEMU that ends in good order removes its socket, but so may whoever
				// cleans up after one that has crashed: which it was cannot be known.
				gone = true
				g.p.warn("the monitor's socket %s is not there any more, and no shutdown was told: nothing is decided. If the guest has crashed, `promote` at the standby brings it back; if its end was meant, end this and the standby", g.qmp)
			}
			select {
			case <-time.After(tick):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *watcher) events(ctx context.Context, m *qmp.Client) {
	for {
		r, err := m.Wait(ctx, func(event.Record) bool { return true })
		if err != nil {
			return
		}
		switch e := r.Event.(type) {
		case event.COLOExit:
			w.set(func() { w.exited = true })
			w.tell(standby.Exited, "")
		case event.Resume:
			w.runs(ctx, r.Time)
		case event.Stop: // by a checkpoint, or by an operator, whose it is only until the next one
			w.look(ctx, m)
		case event.Shutdown:
			if e.Reason == event.ShutdownHostError {
				continue
			}
			if w.planned = string(e.Reason); w.planned == "" {
				w.planned = "no reason given"
			}
			w.tell(standby.PlannedEnd, w.planned)
		}
	}
}

// poll asks again and again whether the guest runs.
func (g *guardian) poll(ctx context.Context, m *qmp.Client) {
	for g.look(ctx, m) {
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return
		}
	}
}

// look asks once. It returns false if asking again is of no use.
func (g *guardian) look(ctx context.Context, m *qmp.Client) bool {
	var st struct{ Status string }
	at := time.Now()
	ask, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := m.Do(ask, "query-status", nil, &st)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil && ask.Err() != nil:
		g.tell(standby.Stands, "its monitor does not answer")
		return true
	case err != nil:
		return false
	}
	switch st.Status {
	case "paused", "prelaunch":
		g.mu.Lock()
		ours := g.settling > 0 || at.Before(g.settled)
		reset := st.Status == "prelaunch" && g.ran
		g.ran = reset
		g.mu.Unlock()
		switch {
		case reset:
			// A checkpoint holds it, at the end of which QEMU runs it: nobody has stopped it. In this state
			// another checkpoint, as holdStill has one made, would be the end of a QEMU 7.2.
			g.tell(standby.Stands, "it was reset within a checkpoint")
		case !ours:
			g.tellSeen(standby.OperatorStop, at)
		}
	case "colo", "finish-migrate", "postmigrate":
		g.tell(standby.Stands, "it is in "+st.Status)
	default: // it runs, or whatever else it has come to by itself
		g.runs(ctx, at)
	}
	return true
}
