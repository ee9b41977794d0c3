package main

import (
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/failover"
)

// beatEvery is how often a guardian asks its standby how it is.
const beatEvery = 200 * time.Millisecond

// talk keeps a control channel to the standby until ctx ends.
func (g *guardian) talk(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := g.channel(ctx)
		g.set(func() { g.link, g.status.Standby = nil, false })
		g.tell(standby.StandbyLost, "")
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			said = text
			g.p.warn("control channel: %v", err)
		}
		select {
		case <-time.After(beatEvery):
		case <-ctx.Done():
		}
	}
}

// channel is one connection to the standby. It returns why it has ended.
func (g *guardian) channel(ctx context.Context) error {
	network, address := qmp.Split(g.control)
	d := net.Dialer{Timeout: g.silence}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if g.creds != nil {
		t := tls.Client(conn, g.creds)
		if err := handshake(ctx, t); err != nil {
			return err
		}
		conn = t
	}
	c := standby.NewControl(conn)
	g.mu.Lock()
	hello := standby.ControlMessage{Say: standby.SaidHello, Version: standby.ControlVersion, Generation: g.generation}
	g.mu.Unlock()
	if err := c.Send(hello, g.silence); err != nil {
		return err
	}
	m, err := c.Receive(g.silence)
	if err != nil {
		return err
	}
	if m.Say != standby.SaidHello {
		return standby.ErrControl
	}
	g.set(func() {
		if g.arb == nil { // nobody else counts
			if g.generation = max(g.generation, m.Generation, 1); !g.protects && g.word.Say == standby.SaidAlone && g.generation == m.Generation {
				g.generation++ // what the standby has is of a guardian before this one
			}
			g.word.Generation = g.generation
		}
		g.link, g.status.Standby = c, true
	})
	g.p.object(map[string]any{"standby": "connected"})
	g.repeat()
	done := make(chan struct{})
	beats := make(chan struct{})
	go func() {
		defer close(beats)
		t := time.NewTicker(beatEvery)
		defer t.Stop()
		for {
			g.mu.Lock()
			at := time.Now()
			g.sent++
			g.beats[g.sent%uint64(len(g.beats))] = at
			m := standby.ControlMessage{Say: standby.SaidBeat, Generation: g.generation, Seq: g.sent}
			g.mu.Unlock()
			if c.Send(m, g.silence) != nil {
				conn.Close()
				return
			}
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	}()
	defer func() { close(done); <-beats }()
	var bytes uint64
	for {
		m, err := c.Receive(g.silence)
		if err != nil {
			return err
		}
		switch m.Say {
		case standby.SaidRuns:
			g.set(func() { g.delivered = math.MaxUint64 }) // it knows all that it needs
			g.tell(standby.StandbyRuns, "")
		case standby.SaidWants:
			g.tell(standby.StandbyWants, "")
		case standby.SaidBeat:
			g.answeredBeat(m)
			if m.Bytes != bytes {
				bytes = m.Bytes
				g.tell(standby.Advances, "")
			}
			g.mu.Lock()
			protects := g.protects
			g.mu.Unlock()
			if m.Ready || protects {
				g.tell(standby.StandbyThere, "")
			}
		}
	}
}

// answeredBeat notes a beat that came back, and the promise in it.
func (g *guardian) answeredBeat(m standby.ControlMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.Seq == 0 || m.Seq > g.sent || m.Seq+uint64(len(g.beats)) <= g.sent {
		return
	}
	g.delivered = max(g.delivered, m.Seq)
	g.status.Checkpoint = m.Epoch
	if g.keeper != nil && m.Promise > 0 && m.Generation == g.generation {
		g.keeper.Promised(m.Generation, g.beats[m.Seq%uint64(len(g.beats))], time.Duration(m.Promise)*time.Millisecond)
	}
}

// send tells the standby, now and whenever it comes back.
func (g *guardian) send(said standby.Said, why string) {
	g.set(func() { g.word = standby.ControlMessage{Say: said, Generation: g.generation, Why: why} })
	g.repeat()
}

// repeat tells the standby the last word.
func (g *guardian) repeat() {
	g.mu.Lock()
	link, m := g.link, g.word
	g.mu.Unlock()
	if link != nil && m.Say != "" {
		link.Send(m, time.Second)
	}
}

// ended tells those who have to know that the guest has: the standby, and the
// arbiter. A death is told for as long as it takes.
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

// give tells the arbiter: a guest that has ended as it was meant to is held for
// good, so that no copy of it is granted; one that is dead is given back.
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

// leave is the end of a guardian whose guest goes on: from now on nobody tells a
// crash from a planned end, so what it holds has no deadline.
func (g *guardian) leave() error {
	g.mu.Lock()
	held, after := g.keeper != nil, g.generation-1
	g.mu.Unlock()
	g.free()
	g.p.warn("the guardian ends: the guest goes on, and nobody lets it run on if its standby is lost")
	if !held {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := g.arb.Acquire(ctx, failover.Claim{Holder: g.holder, Token: g.token, After: after, Note: "without a guardian"})
	return err
}

// says notes the state for "qemu status", and for a standby that comes back.
func (g *guardian) says(state standby.GuardState, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status.State, g.status.Why = state.String(), why
	if state == standby.Unprotected && g.word.Say == "" {
		g.word = standby.ControlMessage{Say: standby.SaidAlone, Generation: g.generation}
	}
}

func (g *guardian) say(text string, object any) {
	g.p.say("%s", text)
	g.p.object(object)
}

// report is what "qemu status" is answered.
func (g *guardian) report() any { return g.standing() }

func (g *guardian) standing() guardianStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := g.status
	st.Generation, st.Paused = g.generation, g.still && g.settling == 0
	return st
}

// stillAlive tells systemd so until the function that it returns is called: what
// waits meanwhile does so for as long as it has to.
func stillAlive() (stop func()) {
	var wait sync.WaitGroup
	done := make(chan struct{})
	wait.Go(func() {
		t := time.NewTicker(10 * tick)
		defer t.Stop()
		for {
			notify("WATCHDOG=1")
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wait.Wait() }
}

// notify tells systemd how it stands, if that has asked for it (sd_notify(3)).
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
