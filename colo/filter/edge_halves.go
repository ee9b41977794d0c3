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

	// learnt has the connections of which something was learnt that no received checkpoint
	// has, with the epoch in which that was. What the client says on them is not delivered.
	learnt map[packet.Key]uint64
}

func newHalves() *halves {
	h := &halves{r: NewRewriter(RewriterConfig{}), since: time.Now(), learnt: make(map[packet.Key]uint64)}
	h.r.over, h.r.held = true, maxAllEarly
	return h
}

// begin takes over c.
func (e *Edge) begin(k packet.Key, c *conversation) {
	if e.halves == nil {
		e.halves = newHalves()
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
		delete(h.learnt, k)
		h.r.last = nil
	}
}

// repeats reports whether s, a SYN or SYN|ACK of a secondary's guest, has the number that the
// guest has chosen for a connection of h, so that it opens no other one.
func (h *halves) repeats(k packet.Key, s packet.TCP) bool {
	if h == nil {
		return false
	}
	c := h.r.conns[k]
	return c != nil && !c.closed && c.own.seq == s.Seq() && h.r.guestOpens(k, c, s) == c
}

// passHalf is pass for a segment of a connection that is not settled.
func (e *Edge) passHalf(k *packet.Key, frame []byte, vnetHdr int, inward bool) (deliver bool) {
	if e.halves == nil || e.halves.r.conns[*k] == nil {
		return true
	}
	r := e.halves.r
	was := r.stats.Rewritten
	if deliver = true; inward {
		c := r.conns[*k]
		knew, offers := c.peerKnown, len(c.offers)
		deliver = r.Inbound(frame, vnetHdr)
		if e.guarded && deliver && c.peerKnown == knew && len(c.offers) == offers {
			deliver = !e.halves.waits(*k, c, e.pkt.TCP())
		} else if e.guarded && deliver {
			e.halves.learnt[*k] = e.next
			deliver, e.asks = false, true
		}
	} else {
		r.Outbound(frame, vnetHdr)
	}
	e.count += r.stats.Rewritten - was
	e.settles(*k)
	return deliver
}

// translationOf returns the translation of a connection, as far as it is known.
func (e *Edge) translationOf(k packet.Key) (t translation, ok bool) {
	if s := e.conns[k]; s != nil {
		return s.translation, true
	}
	if e.halves == nil {
		return t, false
	}
	switch c := e.halves.r.conns[k]; {
	case c == nil:
		return t, false
	case c.byGuest && len(c.offers) == 1:
		return c.own.ahead(c.offers[0].peer), true
	default:
		return c.translation(), c.known()
	}
}

// waits reports whether h, a segment of the client on c, waits for a checkpoint.
func (h *halves) waits(k packet.Key, c *conversation, s packet.TCP) bool {
	_, fresh := h.learnt[k]
	return fresh && !c.closed && s.Flags()&packet.ACK != 0
}

// settles moves the connection of k to those that are settled, or forgets it, if it is time.
func (e *Edge) settles(k packet.Key) {
	c := e.halves.r.conns[k]
	_, fresh := e.halves.learnt[k]
	switch {
	case c == nil, c.closed: // the guest has opened another, or none
		e.halves.remove(k)
	case fresh || !c.known():
	case c.translation() == translation{}:
		e.halves.remove(k)
	case len(e.conns) < MaxEdge:
		e.conns[k] = settle(c)
		e.halves.remove(k)
	}
	if e.halves.len() == 0 {
		e.halves = nil
	}
}

// Mark ends an epoch. The guest is paused, and its devices are not yet saved. From Mark(0)
// on, what a client's answer tells waits for the checkpoint that carries it. An Edge
// refuses no epoch. (A colo.PrimaryNetwork.)
func (e *Edge) Mark(epoch uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if epoch == 0 {
		e.covered(latestEpoch) // no secondary has any of it, and this checkpoint has all
	}
	e.guarded, e.next = true, epoch+1
	return nil
}

// Received says that the secondary has the checkpoint of epoch, and so what was learnt before
// its mark. (A colo.PrimaryNetwork.)
func (e *Edge) Received(epoch uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.covered(epoch)
	return nil
}

// Loaded does nothing. (A colo.PrimaryNetwork.)
func (e *Edge) Loaded(uint64) error { return nil }

// Failover says that this side goes on alone, so that nothing waits for a checkpoint. (A
// colo.PrimaryNetwork.)
func (e *Edge) Failover() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.covered(latestEpoch)
	e.guarded = false
	return nil
}

const latestEpoch = ^uint64(0)

// covered says that whatever was learnt until the end of epoch need not wait any more.
func (e *Edge) covered(epoch uint64) {
	if e.halves == nil {
		return
	}
	for k, at := range e.halves.learnt {
		if at <= epoch {
			delete(e.halves.learnt, k)
			if e.settles(k); e.halves == nil {
				return
			}
		}
	}
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
