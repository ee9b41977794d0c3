package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A peer is the other side, as far as it is about parting. It is the session's
// Arbiter.
//
// While both sides live and can talk, the secondary decides, which is one place:
// a primary whose session broke asks it, over the control connection, and it
// says yes unless it has already gone on itself. A secondary goes on only when
// the primary is lost to the heartbeat. When a side is lost to the other, there
// is nobody to ask here: whoever is left goes on. That is right if a silent host
// is a dead one. If it may be a network that is cut, both sides would go on, and
// no two sides can find out alone: then there must be a third place that both
// reach and that says yes to one only, which is what -arbiter is for.
type peer struct {
	mode    event.Mode
	conn    net.Conn
	arbiter string // command; "": none
	asked   func() // the secondary asks for a checkpoint; nil: not heard

	write   sync.Mutex
	mu      sync.Mutex
	changed chan struct{} // closed when something below changes
	lost    error         // why nothing will be heard from there any more
	ended   string        // why it says that there is no guest any more
	answer  string        // what came back
	winner  event.Mode    // on a secondary: who goes on
}

// What is said on the control connection.
type note struct {
	Say    string `json:"say"`
	Reason string `json:"reason,omitempty"`
}

const (
	sayEnd   = "end"   // there is no guest any more: do not go on
	sayHeard = "heard" // the answer
	sayClaim = "claim" // primary: I want to go on alone
	sayYes   = "yes"
	sayNo    = "no"

	sayCheckpoint = "checkpoint" // secondary: make one, an overlay fills
)

func newPeer(mode event.Mode, conn net.Conn, arbiter string) *peer {
	return &peer{mode: mode, conn: conn, arbiter: arbiter, changed: make(chan struct{})}
}

func (p *peer) say(n note) error {
	p.write.Lock()
	defer p.write.Unlock()
	return json.NewEncoder(p.conn).Encode(n)
}

// set changes what is known; p.mu is not held.
func (p *peer) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// serve reads the control connection until it ends or ctx does.
func (p *peer) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { p.conn.Close() })
	defer stop()
	for {
		var n note
		if readMessage(p.conn, &n) != nil {
			return // the heartbeat knows what that means
		}
		switch n.Say {
		case sayEnd:
			p.set(func() { p.ended = n.Reason })
			p.say(note{Say: sayHeard})
		case sayClaim:
			a := note{Say: sayYes}
			p.set(func() {
				if p.winner == event.ModeSecondary {
					a = note{sayNo, "the secondary has gone on"}
				} else {
					p.winner = event.ModePrimary
				}
			})
			p.say(a)
		case sayCheckpoint:
			if p.asked != nil {
				p.asked()
			}
		case sayYes, sayNo, sayHeard:
			p.set(func() { p.answer = n.Say })
		}
	}
}

// lose says that the other side will not be heard any more.
func (p *peer) lose(why error) { p.set(func() { p.lost = why }) }

// end tells the other side that there is no guest any more, and returns when it
// knows, or is lost, or ctx ends.
func (p *peer) end(ctx context.Context, reason string) {
	p.set(func() { p.answer = "" })
	if p.say(note{sayEnd, reason}) != nil {
		return
	}
	p.await(ctx, func() bool { return p.answer == sayHeard || p.lost != nil })
}

// await waits until done, which is called with p.mu held.
func (p *peer) await(ctx context.Context, done func() bool) error {
	for {
		p.mu.Lock()
		ok, changed := done(), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// state returns what the other side has said: that there is no guest, or that it
// goes on itself.
func (p *peer) state() (ended string, winner event.Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended, p.winner
}

var (
	errEnded   = fmt.Errorf("%w: the other side says that there is no guest any more", colo.ErrRefused)
	errPeerHas = fmt.Errorf("%w: the other side has the guest", colo.ErrRefused)
)

// Arbitrate implements colo.Arbiter.
func (p *peer) Arbitrate(ctx context.Context, c colo.Claim) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	if p.arbiter == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", p.arbiter)
	cmd.Env = append(os.Environ(), "LOCKSTEP_MODE="+string(c.Mode), fmt.Sprintf("LOCKSTEP_EPOCH=%d", c.Epoch))
	if c.Cause != nil {
		cmd.Env = append(cmd.Env, "LOCKSTEP_CAUSE="+oneLine(c.Cause))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		refused := error(nil) // a command that cannot be run has not answered
		if errors.As(err, new(*exec.ExitError)) && ctx.Err() == nil {
			refused = colo.ErrRefused
		}
		return errors.Join(refused, fmt.Errorf("-arbiter %s: %w: %s", p.arbiter, err, strings.TrimSpace(string(out))))
	}
	return nil
}

func (p *peer) settle(ctx context.Context) error {
	if p.mode == event.ModePrimary {
		p.mu.Lock()
		ask := p.lost == nil
		p.mu.Unlock()
		if ask {
			p.say(note{Say: sayClaim}) // one that cannot be told will be lost
		}
		var err error
		return errors.Join(p.await(ctx, func() bool {
			switch {
			case p.ended != "":
				err = fmt.Errorf("%w: %s", errEnded, p.ended)
			case p.answer == sayNo:
				err = errPeerHas
			default:
				return p.answer == sayYes || p.lost != nil
			}
			return true
		}), err)
	}
	var err error
	waited := p.await(ctx, func() bool {
		switch {
		case p.ended != "":
			err = fmt.Errorf("%w: %s", errEnded, p.ended)
		case p.winner == event.ModePrimary:
			err = errPeerHas
		case p.lost != nil:
			p.winner = event.ModeSecondary
		default:
			return false
		}
		return true
	})
	return errors.Join(waited, err)
}
