package filter

import (
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// halves are the connections of an Edge whose handshake is not complete, in the state in
// which the Edge took them over from a Rewriter. Another Rewriter, in here, follows them
// until their numbers are known. It keeps no packet that comes too early, since an Edge
// cannot deliver one later, and follows no new connection.
type halves struct {
	r     *Rewriter
	since time.Time // when the last of them was taken over
}

// begin takes over c.
func (e *Edge) begin(k packet.Key, c *conversation) {
	if e.halves == nil {
		e.halves = &halves{r: NewRewriter(RewriterConfig{})}
		e.halves.r.over, e.halves.r.held = true, maxAllEarly
	}
	h := e.halves
	h.since = time.Now()
	half := *c
	half.early = nil
	h.r.conns[k], h.r.last = &half, nil
}

func (h *halves) len() int {
	if h == nil {
		return 0
	}
	return len(h.r.conns)
}

func (h *halves) remove(k packet.Key) {
	if h != nil {
		delete(h.r.conns, k)
		h.r.last = nil
	}
}

// passHalf is pass for a segment of a connection that is not settled.
func (e *Edge) passHalf(k *packet.Key, frame []byte, vnetHdr int, inward bool) (deliver bool) {
	if e.halves == nil || e.halves.r.conns[*k] == nil {
		return true
	}
	r := e.halves.r
	was := r.stats.Rewritten
	if deliver = true; inward {
		deliver = r.Inbound(frame, vnetHdr)
	} else {
		r.Outbound(frame, vnetHdr)
	}
	e.count += r.stats.Rewritten - was
	switch c := r.conns[*k]; {
	case c == nil: // the guest has opened another
	case c.closed, c.known() && c.translation() == translation{}:
		e.halves.remove(*k)
	case c.known() && len(e.conns) < MaxEdge:
		e.conns[*k] = settle(c)
		e.halves.remove(*k)
	}
	if e.halves.len() == 0 {
		e.halves = nil
	}
	return deliver
}

// tidy forgets what nobody needs any more.
func (e *Edge) tidy() {
	for k, s := range e.conns {
		if !s.ended.IsZero() && time.Since(s.ended) > maxLinger {
			delete(e.conns, k)
		}
	}
	if e.halves == nil || time.Since(e.halves.since) <= maxLinger {
		return
	}
	for k, c := range e.halves.r.conns {
		if !c.known() { // else there was no room for it
			e.halves.remove(k)
		}
	}
}
