package compare

import (
	"github.com/gocolo/lockstep/internal/packet"
)

// With LowerAcks it matters what acknowledgments say, and not which packets carry it. Of
// the acknowledgments that say more than the secondary's guest has acknowledged, only
// the newest is kept; the engine owes it to the peer, and lets it leave with a lower
// number, as high as the secondary's guest has acknowledged by then. An acknowledgment
// that says no more than what has left is a duplicate, from which a peer infers a loss
// (RFC 5681 section 2), so a duplicate leaves only where the guest itself sent one.

// primaryAck takes a segment of the primary's guest that carries an acknowledgment and
// nothing else.
func (e *Engine) primaryAck(c *conn, p *pkt) {
	t := &c.tcp
	if c.owed == nil && t.covers(p) && (!p.signed || !t.exceeds(p)) {
		if d := e.edit(t, p); d.whole(p) {
			e.leave(c, p, &e.stats.Matched)
			return
		}
	}
	e.owe(c, e.hold(c, p))
	e.payOwed(c, false)
	if t.said.rsts && c.lacks() {
		e.diverge(c, ReasonFlags) // the secondary's guest will acknowledge nothing more
	}
}

// owe keeps p if it is the newest acknowledgment that has not left whole. A guest that asks whether
// the peer is alive begins before what it has said, and the peer takes neither number nor window from that
// (RFC 9293 section 3.10.7.4). So it is noted where a packet that begins before what has left by the time at
// which it leaves did not when it came, or is kept in the place of one that did not.
func (e *Engine) owe(c *conn, p *pkt) {
	l := &c.tcp.left
	p.counts, p.shape = p.counts || !l.ends || !after(l.end, p.seq), 0 // it is not as plain ones are
	since := e.now
	if q := c.owed; q != nil {
		p.counts = p.counts || q.counts
		if t := &c.tcp.told; t.outdoes(q, p) || q.id > p.id && !t.outdoes(p, q) {
			q.counts = p.counts
			e.pool.put(p) // it has only waited behind others, which have left
			return
		}
		since = q.at
		e.settle(c)
	}
	c.owed = p
	p.at = since
}

// outdoes reports whether p, which is owed, acknowledges more than q or, if that is the same,
// offers more room. The guest has given it later then.
func (t *told) outdoes(p, q *pkt) bool {
	switch {
	case after(p.ack, q.ack):
		return true
	case p.ack != q.ack, q.dack > 0 && (p.dack == 0 || after(q.dataAck(), p.dataAck())):
		return false
	}
	edge, known := t.edgeOf(p)
	than, _ := t.edgeOf(q)
	return known && after(edge, than)
}

// settle drops the owed acknowledgment, because another packet has told the peer the same,
// or is about to.
func (e *Engine) settle(c *conn) {
	if c.owed != nil {
		e.stats.Merged++
		e.pool.put(c.owed)
		c.owed = nil
	}
}

// payAll lets the owed acknowledgment leave as it is, if that is news to the peer: nothing has to be covered
// any more.
func (e *Engine) payAll(c *conn) {
	t, p := &c.tcp, c.owed
	d := edit{seq: p.seq, ack: p.ack, win: p.win, ts: p.stamp(t.left.ts, t.left.tss), sack: p.blocks()}
	d.edge, d.edges = t.told.edgeOf(p)
	if !t.informs(p, &d) {
		e.settle(c)
		return
	}
	c.owed = nil
	e.release(e.apply(p, &d), &e.stats.Checkpoint)
}

// payOwed lets the owed acknowledgment leave as far as the secondary's guest covers it, if
// that is news to the peer. again says that the secondary's guest has just repeated
// itself: if the primary's guest has sent something too since the last packet left, both
// guests repeat themselves. The peer then has to get the repetition, because it may have
// missed that packet, or because it infers a loss from the duplicate.
func (e *Engine) payOwed(c *conn, again bool) {
	t, p := &c.tcp, c.owed
	l := &t.left
	if !t.covers(p) || c.blind || t.exceeds(p) && !t.lowers(p) {
		return
	}
	d := e.edit(t, p)
	news := !l.acks || after(d.ack, l.ack) || !d.sack.within(&l.sack) || t.dataAcks.news(p, d.less)
	switch whole := d.whole(p); {
	case whole && (news || d.edges && after(d.edge, l.edge) || p.id > l.last):
		c.owed = nil
		e.leave(c, p, &e.stats.Matched)
	case whole:
		e.settle(c) // other packets have told the peer all of it
	case news, d.edges && worthwhile(l, d.edge), again && p.id > l.last:
		if news {
			p.at = e.now
		}
		e.leave(c, e.hold(c, p), &e.stats.Lowered)
		l.last = e.ids // it is a new packet, whatever it was cut from
	}
}

// wasPaid reports whether p, which a checkpoint covers, was owed at the mark and says nothing that
// the peer has not been told since p came. Leaving again it would be a duplicate.
func (e *Engine) wasPaid(c *conn, p *pkt) bool {
	t := &c.tcp
	l := &t.left
	if !e.cfg.LowerAcks || p.owner != c || p.age != c.age || !p.bare() || p.id > l.last || !l.acks {
		return false
	}
	d := e.edit(t, p)
	return d.edges && !after(d.ack, l.ack) && !after(d.edge, l.edge) && d.sack.within(&l.sack) && !t.dataAcks.news(p, d.less)
}

// paySelective lets s leave, an acknowledgment that the secondary's guest has just sent,
// in the place of a lowered one. The SACK blocks of s name data beyond its number that
// both guests hold, so that the peer sends again only what is missing. paySelective
// reports whether a packet has left.
func (e *Engine) paySelective(c *conn, s *pkt) bool {
	t, p := &c.tcp, c.owed
	if s.nsck == 0 || s.signed || !s.bare() || !t.covers(p) || c.blind || !after(p.ack, t.cover.ack) || !t.lowers(p) ||
		s.VNetHdr != p.VNetHdr || (s.ts > 0) != (p.ts > 0) || s.L4 != p.L4 || !s.ordinary() {
		return false
	}
	d := e.edit(t, p)
	own := d.sack
	d.sack = ranges{}
	all, held := s.blocks(), p.blocks()
	for _, b := range all.at[:all.n] {
		if !after(b[1], p.ack) {
			d.sack.add(b[0], b[1])
			continue
		}
		d.sack.absorb(b[0], p.ack)
		one := ranges{at: [4][2]uint32{b}, n: 1}
		both := one.and(&held)
		for _, x := range both.at[:both.n] {
			d.sack.absorb(x[0], x[1])
		}
	}
	if d.sack.n > all.n && !own.within(&t.left.sack) {
		return false // s has no room for all that both hold, and p says some of it that is news
	}
	d.sack.trim(all.n)
	d.cut = d.sack != all
	l := &t.left
	if d.sack.n == 0 || l.acks && !after(d.ack, l.ack) && d.sack.within(&l.sack) {
		return false
	}
	q := e.cut(c, s, s.dat, s.dat, p.seq, packet.ACK)
	q.putHead(p.Packet.Frame[:p.L4+headTCP])
	q.id, q.at = e.ids, e.now
	p.at = e.now
	q = e.apply(q, &d)
	l.note(q, &d, t.told.scale)
	e.release(q, &e.stats.Lowered)
	return true
}

// worthwhile reports whether an update of the window deserves a packet of its own: the
// peer had little room left, or has much more now (RFC 9293 section 3.8.6.2.2).
func worthwhile(l *left, edge uint32) bool {
	const little = 2 * 1460
	room, more := l.edge-l.ack, edge-l.edge
	return after(edge, l.edge) && (room < little || more >= room/2)
}

// lacks reports whether the owed packet has a higher acknowledgment number than the peer
// has been told. Room in the window or SACK blocks alone do not count, since both may
// stay smaller than the primary's guest said.
func (c *conn) lacks() bool {
	l := &c.tcp.left
	return c.owed != nil && (!l.acks || after(c.owed.ack, l.ack) || c.tcp.dataAcks.news(c.owed, 0))
}

// ackOf returns a packet without data that acknowledges what p does.
func (e *Engine) ackOf(c *conn, p *pkt) *pkt {
	seq := p.end
	if p.flags&packet.FIN != 0 {
		seq++
	}
	// p may repeat something, and the peer takes nothing that begins before what it has by the time at which
	// this leaves.
	t := &c.tcp
	if next, known := t.told.next(); known && after(next, seq) {
		seq = next
	}
	if t.left.ends && after(t.left.end, seq) {
		seq = t.left.end
	}
	q := e.cut(c, p, p.dat, p.dat, seq, packet.ACK)
	q.id = p.id // it is no repetition: the peer gets the segment itself
	return q
}
