package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event/qmp"
)

// beatEvery is how often a guardian asks its standby how it is.
const beatEvery = 200 * time.Millisecond

// talk keeps a control channel to the standby until ctx ends.
func (g *guardian) talk(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := g.channel(ctx)
		over := false // the guest is the standby's, which ends when it runs there
		g.set(func() {
			g.link, g.status.Standby, g.copied = nil, false, time.Time{}
			over = g.status.State == standby.StoodDown.String()
		})
		g.tell(standby.StandbyLost, "")
		if ctx.Err() != nil {
			return
		}
		switch words := ofCertificates(err); {
		case words != "":
			err = errors.New("TLS: " + words)
		case hungUp(err):
			err = errors.New("the standby has ended it, or its process has died")
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = fmt.Errorf("nothing has come from the standby, or has been taken by it, for %v", g.silence)
		}
		if text := err.Error(); text != said && !over {
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
func (g *guardian) channel(ctx context.Context) (err error) {
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
		t := tls.Client(conn, g.creds.now())
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
	var broken error // why a beat could not be sent
	go func() {
		defer close(beats)
		t := time.NewTicker(beatEvery)
		defer t.Stop()
		for {
			g.mu.Lock()
			at := time.Now()
			g.sent++
			g.beats[g.sent%uint64(len(g.beats))] = at
			m := standby.ControlMessage{Say: standby.SaidBeat, Generation: g.generation, Seq: g.sent, Why: g.waits()}
			g.mu.Unlock()
			if broken = c.Send(m, g.silence); broken != nil {
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
	defer func() {
		close(done)
		if <-beats; errors.Is(err, net.ErrClosed) && broken != nil {
			err = broken
		}
	}()
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
			bytes = g.heardBeat(m, bytes)
		}
	}
}

// heardBeat takes in a beat of the standby, which had received so many bytes at the one before, and returns how
// many it has now.
func (g *guardian) heardBeat(m standby.ControlMessage, bytes uint64) uint64 {
	g.answeredBeat(m)
	if m.Bytes != bytes {
		g.received()
		g.tell(standby.Advances, "")
	}
	g.mu.Lock()
	protects := g.protects
	g.mu.Unlock()
	if m.Ready || protects {
		g.tell(standby.StandbyThere, "")
	}
	return m.Bytes
}

// waits returns what a standby that was promoted waits for, in words; empty: nothing. g.mu
// is held.
func (g *guardian) waits() string {
	switch {
	case g.status.State != standby.Asking.String():
		return ""
	case g.hangs != "":
		return g.hangs + "; if it hangs, kill it, and the guest goes on here"
	}
	return fmt.Sprintf("the guardian asks the arbiter whether the guest goes on there without this copy (%s)", g.status.Why)
}

// answeredBeat records a beat that came back, and the promise in it.
func (g *guardian) answeredBeat(m standby.ControlMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.Seq == 0 || m.Seq > g.sent || m.Seq+uint64(len(g.beats)) <= g.sent {
		return
	}
	g.delivered = max(g.delivered, m.Seq)
	g.status.Checkpoint = m.Epoch
	if g.copied = (time.Time{}); !m.Ready && m.Epoch > 0 && m.Generation == g.generation {
		g.copied = time.Now()
	}
	if g.keeper != nil && m.Promise > 0 && m.Generation == g.generation {
		g.keeper.Promised(m.Generation, g.beats[m.Seq%uint64(len(g.beats))], time.Duration(m.Promise)*time.Millisecond)
	}
}

// send sends said to the standby, now and whenever it connects again.
func (g *guardian) send(said standby.Said, why string) {
	g.set(func() { g.word = standby.ControlMessage{Say: said, Generation: g.generation, Why: why} })
	g.repeat()
}

// repeat sends the last message of send again.
func (g *guardian) repeat() {
	g.mu.Lock()
	link, m := g.link, g.word
	g.mu.Unlock()
	if link != nil && m.Say != "" {
		link.Send(m, time.Second)
	}
}
