package compare

import (
	"time"

	"github.com/gocolo/lockstep/event"
)

// held adds up the packets that wait, their bytes and the oldest.
type held struct {
	event.HeldOutput           // its Age is computed from oldest at the end
	oldest           time.Time // when the packet came that waits longest; zero without packets
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

// held returns the sum of the packets of the primary's guest that wait.
func (e *Engine) held(now time.Time) event.HeldOutput {
	var h held
	if e.strict != nil {
		e.strict.held(&h)
	}
	for i := range e.marked {
		h.add(len(e.marked[i].p.Data), e.time(e.marked[i].p.at))
	}
	h.queue(e, &e.ownerless)
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

// HeldOutput returns the sum of the primary's output that waits for its twin or for its
// checkpoint, with virtio-net headers. It counts neither packets that may leave and wait
// for Run, nor packets of the secondary's guest. It looks at each packet that waits, and
// other calls wait for it meanwhile. It makes a Comparer a colo.OutputHolder.
func (c *Comparer) HeldOutput() event.HeldOutput {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.held(now)
}
