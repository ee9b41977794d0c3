package filter

import (
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// A connection is followed from its handshake on: a client's SYN is noted, and the guest's
// answer begins the conversation; or the guest's SYN begins it, and the answer that it takes
// of several fixes the numbers.

// clientAsks notes a client's SYN. Only the guest's answer decides whether it begins a
// connection.
func (r *Rewriter) clientAsks(k packet.Key, c *conversation, h packet.TCP) {
	s := syn{h.Seq(), h.Seq() + 1 + uint32(len(h.Payload()))}
	if r.over || c != nil && !c.closed && !c.byGuest && s.precedes(c.first) {
		return // it repeats the SYN of the conversation
	}
	o := r.opens[k]
	if o == nil {
		if !r.roomForOpening() {
			return
		}
		o = new(opening)
		r.opens[k] = o
		r.asked.push(k)
	}
	o.add(s)
}

// isOfOpening reports whether a segment with the flag ACK belongs to a connection that the
// guest has not answered yet: its number follows that of a SYN, and it acknowledges a
// number that does not belong to c, the conversation with the same addresses, if there is
// one.
func (r *Rewriter) isOfOpening(k packet.Key, c *conversation, h packet.TCP) bool {
	if len(r.opens) == 0 {
		return false
	}
	o := r.opens[k]
	if o == nil || !o.follows(h.Seq()) {
		return false
	}
	return c == nil || c.known() && (c.closed || !c.has(h.Ack()+c.translation().seq))
}

// clientResets handles a client's RST, or another segment of the client without the flag
// ACK.
func (r *Rewriter) clientResets(k packet.Key, c *conversation, h packet.TCP) {
	if h.Flags()&packet.RST == 0 {
		return
	}
	if c != nil && h.Seq() == c.next && (c.peerKnown || !c.byGuest) {
		r.end(k, c)
	}
	if o := r.opens[k]; o != nil && o.follows(h.Seq()) {
		r.withdraw(k, o)
	}
}

// guestOpens follows a SYN or SYN|ACK of the guest. It returns the conversation,
// nil if the connection is not followed.
func (r *Rewriter) guestOpens(k packet.Key, c *conversation, h packet.TCP) *conversation {
	answers, seq := h.Flags()&packet.ACK != 0, h.Seq()
	switch {
	case c == nil:
	case c.byGuest && !c.closed && c.own.seq == seq && c.takes(h):
		if answers && !c.crossed { // both ends open the connection at once
			c.crossed, c.first, c.next, c.window = true, h.Ack(), h.Ack(), windowOf(h)
		}
		return c // or it is repeated
	case !c.byGuest && answers && c.own.seq == seq && c.takes(h):
		c.again = opened(h).time
		return c // it is repeated: the first counts, because its time may have been answered
	case !c.closed && !c.byGuest && answers && c.next == h.Ack() && c.sent == c.own.seq+1:
		// Of several numbers the last one counts, since nobody has acknowledged those
		// before it.
		c.own, c.sent = opened(h), seq+1
		c.again = c.own.time
		return c
	}
	if c != nil {
		r.remove(k, c)
	}
	if r.cfg.Edge != nil && !r.cfg.Edge.opens(k, h) {
		return nil // it is repeated, and the guest has the number that the Edge translates
	}
	o := r.opens[k]
	if o != nil {
		r.withdraw(k, o)
	}
	asked := o != nil && answers && o.follows(h.Ack())
	if r.over && !asked {
		return nil // after a failover its number is the only one
	}
	if !r.room() {
		r.stats.Refused++
		r.cannot()
		return nil
	}
	c = &conversation{
		own: opened(h), byGuest: !answers, signed: r.pkt.Signed(), first: h.Ack(),
		life: life{next: h.Ack(), window: windowOf(h), scale: scaleOf(h), sent: seq + 1},
	}
	c.again = c.own.time
	r.conns[k] = c
	r.halves.push(k)
	if c.signed {
		r.stats.Signed++
		r.cannot()
	} else if asked && o.early != nil && o.seq == h.Ack() {
		c.early, c.earlySeq = o.early, o.seq
		r.held += len(c.early)
	}
	return c
}

// takes reports whether h, a SYN or SYN|ACK of the guest with the number of c, is of c. A SYN|ACK acknowledges
// what the one before it has acknowledged, or one of the numbers that were offered, if any was. Else the guest
// has chosen one number for two connections.
func (c *conversation) takes(h packet.TCP) bool {
	switch {
	case h.Flags()&packet.ACK == 0:
		return true
	case !c.byGuest || c.crossed:
		return h.Ack() == c.first
	default:
		return len(c.offers) == 0 || slices.ContainsFunc(c.offers, func(o offer) bool { return h.Ack() == o.seq+1 })
	}
}

// refuses handles a segment of the guest that belongs to no conversation. If it refuses
// a client's SYN, that SYN is forgotten. A refusal acknowledges the SYN.
func (r *Rewriter) refuses(k packet.Key, h packet.TCP) {
	const refusal = packet.RST | packet.ACK
	if len(r.opens) == 0 || h.Flags()&refusal != refusal {
		return
	}
	if o := r.opens[k]; o != nil && o.follows(h.Ack()) {
		r.withdraw(k, o)
	}
}

// offered notes a SYN|ACK for a guest that opens a connection.
func (c *conversation) offered(o offer) {
	for _, x := range c.offers {
		if x.seq == o.seq && x.peer.seq == o.peer.seq {
			return // again: the first may have been answered
		}
	}
	if len(c.offers) < maxOffers {
		c.offers = append(c.offers, o)
	}
}

// answered handles a segment of a guest that has opened a connection. The segment
// acknowledges one of the SYN|ACKs, perhaps with some data after it; that one is the offer
// that the guest has taken.
func (c *conversation) answered(h packet.TCP) {
	if len(c.offers) == 0 && !c.crossed {
		// What it answers was delivered before the conversation began: the guest had sent its SYN before the
		// checkpoint, and repeats it.
		c.peer, c.peerKnown, c.next = c.own, true, h.Ack()
		return
	}
	best, at := c.flight(), -1
	for i, o := range c.offers {
		if d := h.Ack() - (o.seq + 1); d < best {
			best, at = d, i
		}
	}
	if at < 0 {
		return
	}
	o := c.offers[at]
	c.peer, c.peerKnown, c.offers = o.peer, true, nil
	c.next = o.seq + 1
}
