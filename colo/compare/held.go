package compare

import (
	"time"

	"github.com/gocolo/lockstep/event"
)

// held adds up what waits.
type held struct {
	event.HeldOutput
	oldest time.Time
}

func (h *held) add(n int, at time.Time) {
	if h.Packets == 0 || at.Before(h.oldest) {
		h.oldest = at
	}
	h.Packets++
	h.Bytes += int64(n)
}

func (h *held) queue(e *Engine, q *queue) {
	for _, p := range q.all() {
		h.add(len(p.Data), e.time(p.at))
	}
}

// held returns what waits of the primary's guest.
func (e *Engine) held(now time.Time) event.HeldOutput {
	var h held
	if e.strict != nil {
		e.strict.held(&h)
	}
	for i := range e.marked {
		h.add(len(e.marked[i].p.Data), e.time(e.marked[i].p.at))
	}
	h.queue(e, &e.sidelined)
	for c := e.newest; c != nil; c = c.older {
		h.queue(e, &c.p)
		if c.owed != nil {
			h.add(len(c.owed.Data), e.time(c.owed.at))
		}
	}
	if h.Packets > 0 {
		h.Age = max(0, now.Sub(h.oldest))
	}
	return h.HeldOutput
}

func (e *strict) held(h *held) {
	for _, p := range e.marked {
		h.add(len(p.Data), p.at)
	}
	for _, c := range e.list {
		for _, p := range c.p {
			h.add(len(p.Data), p.at)
		}
	}
}

// HeldOutput returns the output of the primary's guest that waits for its twin or
// for its checkpoint, virtio-net headers included. What may leave, and waits for
// Run, does not count, nor does what the secondary's guest has said. It looks at
// each packet that waits, and keeps the others out as long. (A colo.OutputHolder.)
func (c *Comparer) HeldOutput() event.HeldOutput {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.held(now)
}
