package compare

import "github.com/gocolo/lockstep/internal/packet"

// A guest takes a segment for lost when the peer acknowledges one that the guest has sent
// later (RFC 8985 section 6.2). If a repetition left at once, it would overtake the segments
// that its guest has sent before it and that wait for the secondary's guest, and its guest
// would repeat all of these too. So with LowerAcks a repetition takes its turn behind what
// waits. It leaves sooner if either guest says the same again, and after the time of one
// round trip, since the secondary's guest may have no room to say what is before it until
// the peer has what it repeats. Only so many repetitions wait that new segments find room.

// turn takes p, which repeats what has left, and reports whether it waits for its turn. It
// lets those leave that wait for theirs and that p repeats.
func (e *Engine) turn(c *conn, p *pkt) bool {
	const odd = packet.SYN | packet.FIN | packet.RST | packet.URG
	v, w := &c.tcp.cover, c.tcp.flight
	if n := c.p.len(); n == 0 || n > e.cfg.MaxQueue/2 || !e.cfg.ReleaseRetransmits || c.blind || c.apart || p.flags&odd != 0 || p.signed || p.multi || !v.agreed || v.ahead(p.end) || w.rtt == 0 || e.turned(c, p) {
		return false
	}
	q := e.hold(c, p)
	q.turn, w.withheld = true, true
	c.p.push(q)
	e.await(c, e.now.Add(w.rtt))
	return true
}

// turned lets the repetitions leave, before their turn, of which s repeats some bytes. It
// reports whether there were any.
func (e *Engine) turned(c *conn, s *pkt) bool {
	return e.hurry(c, func(q *pkt) bool { return after(s.end, q.seq) && after(q.end, s.seq) })
}

// hurry lets the repetitions leave, before their turn, for which the function which returns
// true. It reports whether there were any.
func (e *Engine) hurry(c *conn, which func(q *pkt) bool) (any bool) {
	if c.blind || c.apart {
		return false
	}
	for i := 0; i < c.p.len(); {
		q := c.p.at(i)
		if !q.turn || !which(q) || !e.ackOK(&c.tcp, q) {
			i++
			continue
		}
		any = true
		c.p.remove(i)
		if e.tooLate(c, q) {
			e.pool.put(q)
			continue
		}
		e.leave(c, q, &e.stats.Matched)
	}
	return any
}

// tooLate reports whether q, which has waited for its turn, need not leave any more: the peer
// has acknowledged more meanwhile, the data of q included, and nothing else that q says is
// news. It counts those. What the peer has said before, or somebody for it, keeps no
// repetition from leaving.
func (e *Engine) tooLate(c *conn, q *pkt) bool {
	l, w := &c.tcp.left, c.tcp.flight
	if w == nil || !w.hears || !w.moved.After(q.at) || after(q.end, w.acked) || q.nsck > 0 || !l.acks || after(q.ack, l.ack) || c.tcp.dataAcks.news(q, 0) {
		return false
	}
	if edge, ok := c.tcp.told.edgeOf(q); ok && (!l.edges || after(edge, l.edge)) {
		return false
	}
	e.stats.Repeated++
	return true
}
