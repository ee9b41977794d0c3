package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/examples/internal/strangers"
)

// promise is the time for which a standby that follows, and has just answered its guardian, does
// not ask the arbiter: so long the guest of a primary runs on while the arbiter is down.
const promise = 5 * time.Second

// heard keeps what a standby has heard about the primary's guest from outside the session:
// from its guardian, over the control channel, and from operators.
type heard struct {
	p       *printer
	silence time.Duration // for which a guardian may say nothing

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced with each change
	link       *standby.Control
	conn       net.Conn // of link
	presence   standby.Presence
	word       standby.Word
	why        string // the guardian's, of the word
	promoted   bool   // by an operator, since the session began
	running    bool   // the primary was not known to be lost when it was, or is not yet
	assured    bool   // the operator says that the primary's guest does not run
	generation uint64 // of the copy that is here; 0: there is none, or nobody has told
	next       uint64 // of the migration that comes
	ready      bool   // a primary is waited for
	live       bool   // there is a session, or one whose end is not settled
	epoch      func() (epoch, bytes uint64)
	promised   time.Time // the arbiter is not asked before
	asking     bool      // it is about to be asked, or has said yes: nothing is promised
	runs       uint64    // the generation that was gone on with; 0: none
	waits      string    // what the guardian waits for itself, as its last beat says

	refusals once // why connections to the control channel came to nothing

	room strangers.Room // of connections to the control channel, but for the guardian's
}

func newHeard(p *printer) *heard {
	h := &heard{p: p, silence: standby.DefaultSilence, changed: make(chan struct{})}
	h.room = strangers.Room{Max: maxControls, Warn: func(err error) { p.warn("control channel: nobody can be accepted for now: %v", err) }}
	return h
}

func (h *heard) update(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn()
	close(h.changed)
	h.changed = make(chan struct{})
}

// begin is called when a primary has connected.
func (h *heard) begin(epoch func() (epoch, bytes uint64)) {
	h.update(func() {
		h.generation, h.word, h.why, h.promoted = h.next, standby.NoWord, "", false
		h.running, h.assured = true, false
		h.ready, h.live, h.asking, h.epoch = false, true, false, epoch
	})
}

// idle is called when a primary is waited for.
func (h *heard) idle() {
	h.update(func() {
		h.ready, h.live, h.asking, h.epoch, h.generation, h.word, h.promoted = true, false, false, nil, 0, standby.NoWord, false
	})
}

// goOn tells the guardian, now and whenever it comes back, that the guest runs
// here. One that takes nothing is waited for as long as tellTime.
func (h *heard) goOn(generation uint64) {
	var link *standby.Control
	h.update(func() {
		h.runs = max(generation, h.generation+1)
		h.ready, h.live, link = false, false, h.link // nothing is promised any more
	})
	if link != nil {
		link.Send(standby.ControlMessage{Say: standby.SaidRuns, Generation: h.runs}, tellTime)
	}
}

// tellTime is how long a guardian is waited for that takes nothing, though it may say something: the guest
// is brought back after that. It hears when it connects again what it has not taken.
const tellTime = 200 * time.Millisecond

// ask asks the guardian to stop its guest.
func (h *heard) ask() {
	h.mu.Lock()
	link, m := h.link, standby.ControlMessage{Say: standby.SaidWants, Generation: h.generation}
	h.mu.Unlock()
	if link != nil {
		link.Send(m, tellTime)
	}
}

// claims is called before the arbiter is asked for the generation after the one
// that it returns, which is not to be before a time. Nothing more is promised from
// now on, so that this time stays the same.
func (h *heard) claims() (after uint64, not time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asking = true
	return h.generation, h.promised
}

// unclaimed is called when the arbiter was asked and has not granted the guest.
func (h *heard) unclaimed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asking = false
}

// evidence returns what is known, and what is closed when that changes.
func (h *heard) evidence() (e standby.Evidence, why string, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return standby.Evidence{Guardian: h.presence, Word: h.word, Promoted: h.promoted, Running: h.running, Assured: h.assured}, h.why, h.changed
}

// unstopped returns an error if nobody would stop the primary's guest were this side promoted now: it may run, and
// its guardian, which could, has been here and does not answer.
func (h *heard) unstopped() error {
	e, _, _ := h.evidence()
	e.Promoted, e.Assured = true, false
	if step, _ := (standby.Takeover{}).Next(e); step == standby.Wait {
		return errors.New("the guardian does not answer, so nobody would stop the primary's guest, and two may run: make sure that it does not run (end its QEMU), and say so with -stopped")
	}
	return nil
}

// over returns why a session is over, of which its connection may never say so; nil: nobody has said that it is.
func (h *heard) over() error {
	e, why, _ := h.evidence()
	if why != "" {
		why = ": " + why
	}
	switch e.Word {
	case standby.Dead:
		return fmt.Errorf("the guardian says that the primary is dead%s", why)
	case standby.Alone:
		return fmt.Errorf("the guardian says that the primary's guest runs on alone%s", why)
	}
	return nil
}

// stays returns what the guardian waits for itself; empty: nothing that it has told.
func (h *heard) stays() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waits
}

// maxControls is how many connections to the control channel there are at a time, beside the guardian's.
// One more ends the oldest.
const maxControls = 8

// serve takes guardians in until ctx ends, of which the newest counts. Connections that say
// nothing keep no guardian out.
func (h *heard) serve(ctx context.Context, l net.Listener, creds *tls.Config) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := h.room.Accept(ctx, l)
		if err != nil {
			return
		}
		all.Go(func() {
			defer h.room.Leave(conn)
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			if err := h.guardian(ctx, conn, creds); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				if text := fmt.Sprintf("control channel of %s: %v", hostIn(conn), err); h.refusals.first(text) {
					h.p.warn("%s", text)
				}
			}
		})
	}
}

// guardian is one connection of a guardian.
func (h *heard) guardian(ctx context.Context, conn net.Conn, creds *tls.Config) error {
	raw := conn
	if creds != nil {
		t := tls.Server(conn, creds)
		if err := handshake(ctx, t); err != nil {
			return err
		}
		conn = t
	}
	c := standby.NewControl(conn)
	m, err := c.Receive(h.silence)
	if err != nil {
		return err
	}
	if m.Say != standby.SaidHello {
		return fmt.Errorf("%w: %q comes first", standby.ErrControl, m.Say)
	}
	if !h.room.Leave(raw) {
		return net.ErrClosed // it has been ended just now
	}
	var first []standby.ControlMessage
	var old *standby.Control
	h.update(func() {
		if h.conn != nil {
			h.room.Enter(h.conn) // it ends when it says something next, and may be ended before
		}
		old, h.link, h.conn, h.presence = h.link, c, raw, standby.GuardianHere
		if h.live && h.generation == 0 {
			h.generation = m.Generation // it has found its QEMU in COLO
		}
		h.hear(m)
		hello := h.beat()
		hello.Say, hello.Version = standby.SaidHello, standby.ControlVersion
		first = append(first, hello)
		if h.runs > 0 {
			first = append(first, standby.ControlMessage{Say: standby.SaidRuns, Generation: h.runs})
		}
	})
	h.refusals.again()
	if old != nil {
		h.p.say("guardian    another one has connected, %s", peer(conn))
	} else {
		h.p.say("guardian    connected, %s", peer(conn))
	}
	h.p.object(map[string]string{"guardian": "connected"})
	defer h.update(func() {
		if h.link == c {
			h.link, h.conn, h.presence, h.waits = nil, nil, standby.GuardianGone, ""
			h.p.object(map[string]string{"guardian": "lost"})
		}
	})
	for _, m := range first {
		if err := c.Send(m, h.silence); err != nil {
			return err
		}
	}
	var end string         // in the guardian's words, of a guest of which no copy is here
	for over := false; ; { // it ends when the standby has heard of the guest's end
		m, err := c.Receive(h.silence)
		if err != nil {
			return h.lost(err, over, end)
		}
		switch m.Say {
		case standby.SaidPlanned, standby.SaidDead, standby.SaidStopped:
			over, end = true, h.unkept(m)
		case standby.SaidProtect:
			over, end = false, ""
		}
		var answer standby.ControlMessage
		h.update(func() {
			h.hear(m)
			answer = h.beat()
			answer.Seq = m.Seq
			if h.link != c {
				err = errors.New("another guardian has taken its place")
			} else if h.live && !h.asking {
				answer.Promise = uint32(promise.Milliseconds())
				h.promised = time.Now().Add(promise)
			}
		})
		if err != nil {
			return err
		}
		if m.Say == standby.SaidBeat {
			if err := c.Send(answer, h.silence); err != nil {
				return h.lost(err, over, end)
			}
		}
	}
}

// unkept returns why a guest has ended, as its guardian says in m, where no session tells of that: no copy
// of the guest is here, and it does not run here. Otherwise it returns "".
func (h *heard) unkept(m standby.ControlMessage) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live || h.runs > 0 {
		return ""
	}
	return cmp.Or(m.Why, string(m.Say))
}

// lost returns how it is said that a guardian's connection has ended by err; nil: not as a failure, since
// the guest has ended, as the guardian has said, or runs here. end is what unkept has returned then: nothing
// else would tell the operator of this host why the guest does not come.
func (h *heard) lost(err error, over bool, end string) error {
	h.mu.Lock()
	over = over || h.runs > 0
	h.mu.Unlock()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the guardian is lost: nothing has come from it, or has been taken by it, for %v", h.silence)
	case !hungUp(err):
		return fmt.Errorf("the guardian is lost: %w", err)
	case over:
		if end != "" {
			h.p.say("guardian    gone, and so is its guest, of which no copy is here: %s", end)
		}
		return nil
	}
	return errors.New("the guardian has ended, or its process has died")
}

// hear takes a message in. h.mu is held.
func (h *heard) hear(m standby.ControlMessage) {
	switch m.Say {
	case standby.SaidProtect:
		h.next = m.Generation
	case standby.SaidBeat:
		h.waits = m.Why
	}
	if !h.live || h.word == standby.Planned || h.word == standby.Dead || h.word == standby.Alone {
		return
	}
	w := standby.NoWord
	if h.generation > 0 {
		w = m.WordFor(h.generation)
	} else if m.Say != standby.SaidHello {
		w = m.WordFor(m.Generation - 1)
		if m.Say != standby.SaidAlone {
			w = m.WordFor(m.Generation)
		}
	}
	if w != standby.NoWord {
		h.word, h.why = w, m.Why
	}
}

// beat returns the answer to a beat of a guardian. h.mu is held.
func (h *heard) beat() standby.ControlMessage {
	m := standby.ControlMessage{Say: standby.SaidBeat, Generation: max(h.generation, h.next), Ready: h.ready}
	if h.epoch != nil {
		m.Epoch, m.Bytes = h.epoch()
	}
	return m
}
