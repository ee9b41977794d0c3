package compare

import (
	"bytes"

	"github.com/gocolo/lockstep/internal/packet"
)

// While a segment of the primary's guest waits for the secondary's to say as much, the
// primary's guest takes it for lost as soon as the peer acknowledges one that was sent
// later, such as a retransmission, which leaves at once (RFC 8985 section 6.2). So after
// each loss that guest sends again all that waits, and goes on doing so while the first of
// these packets are on their way at last. If all repetitions left, the peer would get much
// of the stream twice, over a link on which something was lost a moment ago. With LowerAcks
// the packet that waits leaves in place of its repetitions.

// repeat takes p, which says nothing but what the primary's guest has said before, and
// reports whether p need not leave.
func (e *Engine) repeat(c *conn, p *pkt) bool {
	t := &c.tcp
	w := e.flies(t, t.told.end)
	w.keepHead(p.Packet.Frame, p.L4, p.signed)
	if p.ts > 0 {
		if !w.recovers {
			w.recovers, w.began, w.until = true, p.stamped(), t.told.end
		}
		serialMax(&w.stamp, &w.stamps, p.stamped())
	}
	if !e.needless(c, p) {
		return false
	}
	e.stats.Repeated++
	e.relay(c, p) // it may turn out to be needed
	w.withheld = true
	if p.ts > 0 {
		for _, q := range c.p.all() {
			if q.owner == c && q.age == c.age && after(q.end, p.seq) && after(p.end, q.seq) {
				q.restamp(p.stamped())
			}
		}
	}
	// No other packet may say what p acknowledges, and how much window it
	// offers.
	l := &t.left
	edge, scaled := t.told.edgeOf(p)
	if p.flags&packet.ACK != 0 && (!l.acks || after(p.ack, l.ack) || scaled && (!l.edges || after(edge, l.edge)) || p.nsck > 0 || t.dataAcks.news(p, 0)) {
		next, _ := t.told.next() // known: p repeats data
		q := e.cut(c, p, p.dat, p.dat, next, packet.ACK)
		q.id = e.ids
		e.owe(c, q)
		e.payOwed(c, false)
	}
	return true
}

// flies returns what is known of the flight of t, on which something is repeated. Where the
// primary's guest has said no data yet, all of it begins at seq.
func (e *Engine) flies(t *stream, seq uint32) *flight {
	w := t.flight
	if w == nil {
		if t.told.data {
			seq = t.told.end
		}
		w = &flight{sent: seq} // rare: something was lost
		t.flight, e.repeats = w, true
	}
	w.used = true
	return w
}

// needless reports whether p is nothing but bytes and an acknowledgment, and each of the
// bytes waits already, with the same value, or has left and is repeated too soon, or has just
// left for the other guest.
func (e *Engine) needless(c *conn, p *pkt) bool {
	const odd = packet.SYN | packet.FIN | packet.RST | packet.URG
	if p.flags&odd != 0 || p.signed || p.multi || c.blind {
		return false
	}
	from := p.seq
	if v := &c.tcp.cover; v.agreed && !v.ahead(from) && from != v.done {
		to := p.end
		if v.ahead(to) {
			to = v.done
		}
		if w := c.tcp.flight; !w.tooSoon(from, to, e.now) && !w.relays(from, to, e.now) {
			return false
		}
		from = to
	}
	for _, q := range c.p.all() {
		switch {
		case from == p.end:
			return true
		case q.owner != c || q.age != c.age || q.flags&(packet.SYN|packet.RST|packet.URG) != 0 || !after(q.end, from):
			continue
		case after(q.seq, from):
			return false
		}
		n := min(p.end-from, q.end-from)
		if !bytes.Equal(p.data()[from-p.seq:][:n], q.data()[from-q.seq:][:n]) {
			return false
		}
		from += n
	}
	return from == p.end
}
