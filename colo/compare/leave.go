package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A segment may leave with another acknowledgment number, window, timestamp and SACK
// blocks than the guest gave it. The peer sees one guest, which promises only what both
// guests can keep and never takes anything back.

// A raised records a segment that left with a newer timestamp than the guest gave it.
// When the peer echoes that timestamp, Inbound writes the guest's own in its place.
type raised struct {
	seq       uint32 // of the segment's data
	end       uint32 // of the segment's data; a segment of the peer that acknowledges as much may have the echo
	was, sent uint32
	is        bool
}

// An edit says with which values a segment is to leave.
type edit struct {
	seq  uint32
	ack  uint32
	win  uint16
	ts   uint32
	sack ranges // the blocks that may leave, if cut
	cut  bool   // not all SACK blocks of the segment may leave

	edge  uint32 // of the window, by ack and win
	edges bool   // edge is known
	less  uint32 // by how much the DATA_ACK is lower
}

// changesNothing reports whether p leaves as it is, but perhaps for its timestamp.
func (d *edit) changesNothing(p *pkt) bool {
	return d.seq == p.seq && d.win == p.win && d.whole(p)
}

// whole reports whether p acknowledges all that its guest has acknowledged with it, and offers
// as much room.
func (d *edit) whole(p *pkt) bool {
	return d.ack == p.ack && d.win >= p.win && d.less == 0 && !d.cut
}

// leave lets a segment of the primary's guest leave, with the values that the peer may
// see.
func (e *Engine) leave(c *conn, p *pkt, count *uint64) {
	t := &c.tcp
	if count == &e.stats.Matched {
		c.agreed()
	}
	if p.class >= 0 && (p.owner != c || p.age != c.age) {
		// The segment belongs to the connection before this one, or to an unknown one, and
		// a checkpoint covers it.
		newest, known := t.left.ts, t.left.tss
		if p.owner != nil && t.left.pasts { // the connection after it may have said something by now
			serialMax(&newest, &known, t.left.past)
		}
		d := edit{seq: p.seq, ack: p.ack, win: p.win, ts: p.stamp(newest, known)}
		if p.owner != nil && p.ts > 0 {
			serialMax(&t.left.past, &t.left.pasts, d.ts) // a repetition may have made it newer than those behind it
			if t.told.pieces {
				serialMax(&t.left.ts, &t.left.tss, d.ts) // the peer may not have taken the SYN in fragments for one
			}
		}
		p = e.apply(p, &d)
		e.release(p, count)
		return
	}
	d := e.edit(t, p)
	if p.flags&packet.RST != 0 {
		e.settle(c) // a guest without a connection acknowledges no more
	}
	if e.cfg.LowerAcks && p.flags&packet.ACK != 0 && p.flags&(packet.SYN|packet.RST) == 0 && !p.bare() {
		// The engine owes the peer what the segment does not say any more.
		edge, ok := t.told.edgeOf(p)
		if after(p.ack, d.ack) || ok && after(edge, d.edge) || d.less > 0 || d.cut {
			e.owe(c, e.ackOf(c, p))
		} else if c.owed != nil && !t.told.outdoes(c.owed, p) && !after(c.owed.ack, d.ack) && (c.owed.nsck == 0 || c.owed.id < p.id) && (c.owed.dack == 0 || p.dack > 0 && !after(c.owed.dataAck(), p.dataAck())) {
			e.settle(c)
		}
	}
	if p.ts > 0 && d.ts != binary.BigEndian.Uint32(p.Packet.Frame[p.ts:]) {
		if t.left.raised == nil {
			t.left.raised = new([8]raised) // rare: something was lost
		}
		was := p.stamped()
		if w := t.flight; w != nil {
			was = w.latest(was)
		}
		t.left.raised[t.left.next%uint8(len(t.left.raised))] = raised{seq: p.seq, end: p.end, was: was, sent: d.ts, is: true}
		t.left.next++
		e.raised = true // until a mark finds that all is answered
	}
	if e.cfg.LowerAcks && p.owner == c && count == &e.stats.Checkpoint && p.bare() && (after(p.ack, d.ack) || d.less > 0) {
		e.owe(c, e.hold(c, p)) // at a later mark less may be allowed
	}
	p = e.apply(p, &d)
	t.left.note(p, &d, t.told.scale)
	t.dataAcks.leave(p)
	if w := t.flight; w != nil && p.seq != p.end && p.flags&(packet.SYN|packet.RST) == 0 {
		w.leave(p.end, e.now)
		e.record(c, p.seq, p.data(), &p.Frame, p.L4, p.signed)
	}
	e.release(p, count)
}

// edit returns the values with which p is to leave now.
func (e *Engine) edit(t *stream, p *pkt) (d edit) {
	l := &t.left
	d = edit{seq: p.seq, ack: p.ack, win: p.win, ts: p.stamp(l.ts, l.tss)}
	if p.flags&packet.ACK == 0 {
		return d
	}
	d.edge, d.edges = t.told.edgeOf(p)
	if !e.cfg.LowerAcks || p.signed || p.flags&packet.SYN != 0 {
		return d
	}
	v := &t.cover
	if v.acks && after(d.ack, v.ack) {
		d.ack = v.ack
	}
	d.less = t.dataAcks.excess(p)
	if p.flags&packet.RST != 0 {
		// Its window is nobody's. And it may refuse the SYN of another connection, whose client
		// takes no other number (RFC 9293 section 3.10.7.3).
		d.edges = false
		return d
	}
	switch {
	case p.bare() && t.early(p):
		// The peer takes no window from a segment that begins before the one that it has its
		// window from (RFC 9293 section 3.10.7.4). A guest that goes on from what has left
		// would not be believed.
		d.seq = l.end
	case !p.bare() && l.acks && after(l.ack, d.ack):
		d.ack = l.ack // it has waited, and others have left
	}
	if d.edges && (d.ack != p.ack || v.edges && after(d.edge, v.edge) || p.id < l.last && l.edges && after(l.edge, d.edge)) {
		t.window(&d)
	}
	if p.nsck > 0 {
		all := p.blocks()
		for _, b := range all.at[:all.n] {
			if !after(b[1], d.ack) { // a duplicate (RFC 2883), which nobody waits for
				d.sack.add(b[0], b[1])
				continue
			}
			v.holds(b, &d.sack)
		}
		d.sack.trim(all.n)
		d.cut = d.sack != all
	}
	if p.counts && l.ends && after(l.end, d.seq) && t.informs(p, &d) {
		d.seq = l.end
	}
	return d
}

// informs reports whether p says anything that is news to the peer if it leaves with the values of d.
func (t *stream) informs(p *pkt, d *edit) bool {
	l := &t.left
	if !l.acks || after(d.ack, l.ack) || d.edges && after(d.edge, l.edge) || t.dataAcks.news(p, d.less) {
		return true
	}
	return p.nsck > 0 && !d.sack.within(&l.sack)
}

// early reports whether p, which has no data, begins behind what has left, and the secondary's
// guest has not said as much.
func (t *stream) early(p *pkt) bool {
	return t.left.ends && after(p.seq, t.left.end) && !t.said.reaches(p.seq)
}

// stamp returns the timestamp with which p is to leave if the newest that has left is
// newest. It never goes back, since the peer would drop the segment (RFC 7323 section 5).
func (p *pkt) stamp(newest uint32, known bool) uint32 {
	if p.ts == 0 {
		return 0
	}
	ts := p.stamped()
	if known && !p.signed && after(newest, ts) {
		return newest
	}
	return ts
}

// window sets d's window to suit its acknowledgment number, which may be lower than the
// guest's: both guests have room up to its end, and its end is not before that of an
// earlier window.
func (t *stream) window(d *edit) {
	l, v := &t.left, &t.cover
	edge, unit := d.edge, uint32(1)<<t.told.scale
	if v.edges && after(edge, v.edge) {
		edge = v.edge
	}
	if l.edges && after(l.edge, edge) {
		edge = l.edge
	}
	units := (edge - d.ack) >> t.told.scale
	if after(d.ack, edge) {
		units = 0
	}
	units = min(units, 0xffff)
	if end := d.ack + units<<t.told.scale; l.edges && after(l.edge, end) {
		// The edge is no multiple of the window's unit away: a lower number makes it one.
		short := (l.edge - d.ack) & (unit - 1)
		if a := d.ack - (unit - short); short > 0 && l.acks && !after(l.ack, a) {
			d.ack, units = a, min((l.edge-a)>>t.told.scale, 0xffff)
		} else if l.acks {
			d.ack, units = l.ack, uint32(l.win) // as was said with it
		}
	}
	d.win = uint16(units)
	d.edge = d.ack + units<<t.told.scale
}

// lowers reports whether p may leave with a lower number: the scale of its window is
// known, and p has no signature that covers the number.
func (t *stream) lowers(p *pkt) bool {
	return !p.signed && t.told.scaled && p.flags&(packet.SYN|packet.ACK) == packet.ACK
}

// apply makes the changes of d to p and returns it, or a copy of it where p's memory is
// the caller's.
func (e *Engine) apply(p *pkt, d *edit) *pkt {
	stamped := p.ts > 0 && d.ts != binary.BigEndian.Uint32(p.Packet.Frame[p.ts:])
	if !stamped && d.changesNothing(p) {
		return p
	}
	if p.class < 0 {
		p = e.pool.copy(p)
	}
	f := p.Packet.Frame
	head := f[p.L4:p.dat]
	h := packet.TCP(head)
	was := packet.Sum(packet.Sum(0, head[4:16]), head[18:])
	h.SetSeq(d.seq)
	h.SetAck(d.ack)
	binary.BigEndian.PutUint16(head[14:], d.win)
	if p.seq != d.seq {
		p.seq, p.end, p.ok = d.seq, d.seq, d.seq // it has no data
	}
	p.ack, p.win = d.ack, d.win
	if stamped {
		binary.BigEndian.PutUint32(f[p.ts:], d.ts)
	}
	if d.cut {
		p.cutSACK(&d.sack)
	}
	if p.dack > 0 {
		p.lowerDataAck(d.less)
	}
	// A checksum that the device has yet to finish is that of the pseudo-header
	// only (virtio 1.2 section 5.1.6.2).
	if p.VNetHdr == 0 || p.Data[0]&1 == 0 {
		now := packet.Sum(packet.Sum(0, head[4:16]), head[18:])
		h.SetChecksum(packet.Update(h.Checksum(), uint32(was), uint32(now)))
	}
	return p
}

// cutSACK writes the blocks of r into the SACK option, and padding into the rest of it.
func (p *pkt) cutSACK(r *ranges) {
	f := p.Packet.Frame
	opt := f[p.sack-2 : p.sack+8*p.nsck]
	p.nsck = min(p.nsck, int(r.n))
	for i := range p.nsck {
		binary.BigEndian.PutUint32(opt[2+8*i:], r.at[i][0])
		binary.BigEndian.PutUint32(opt[6+8*i:], r.at[i][1])
	}
	keep := 0
	if p.nsck > 0 {
		keep = 2 + 8*p.nsck
		opt[1] = byte(keep)
	} else {
		p.sack = 0
	}
	for i := keep; i < len(opt); i++ {
		opt[i] = packet.OptNop
	}
}

// note updates l by a segment that has left with the values of d.
func (l *left) note(p *pkt, d *edit, scale uint8) {
	if p.ts > 0 {
		serialMax(&l.ts, &l.tss, d.ts)
	}
	if !p.bare() && p.flags&packet.RST == 0 {
		end := p.end
		if p.flags&(packet.SYN|packet.FIN) != 0 {
			end++
		}
		serialMax(&l.end, &l.ends, end)
	}
	if p.flags&packet.ACK == 0 || p.flags&packet.RST != 0 {
		return
	}
	win, edge := d.win, d.edge
	l.last = max(l.last, p.id)
	if p.flags&packet.SYN != 0 {
		if l.acks {
			return // it says nothing new of the window, which it cannot scale
		}
		// Of its room, what a scaled window cannot say is not counted: acknowledgments
		// could not leave until one is by a unit of the window higher.
		win >>= scale
		edge = d.ack + uint32(win)<<scale
	}
	if !l.acks || after(d.ack, l.ack) || d.ack == l.ack && win > l.win {
		l.ack, l.acks, l.win = d.ack, true, win
	}
	if d.edges {
		serialMax(&l.edge, &l.edges, edge)
	}
	if p.nsck > 0 {
		l.sack = p.blocks()
	}
}

// echoes reports whether Inbound might have to change f.
func (e *Engine) echoes(f Frame) bool {
	if e.strict != nil || !f.fits() || len(f.Data) > maxFrame {
		return false
	}
	p := &e.inbound
	p.Parse(f.Data[f.VNetHdr:])
	if !p.IsTCP() || p.Routed {
		return false
	}
	flags := p.TCP().Flags() & (packet.SYN | packet.ACK)
	return flags == packet.SYN|packet.ACK || (e.raised || e.repeats) && flags == packet.ACK
}

// Inbound takes a packet that is on its way to the guests, before either has it. Where a
// segment has left with another timestamp than the guest gave it, Inbound writes the
// timestamp of the guest into the peer's echo, in place, and corrects the checksum; changed
// reports that. It does so too where a guest would take from the echo that what it has
// repeated was not lost, and that may be due to the other guest. The engine also learns the
// scale of the peer's window from it, and, with LowerAcks, what the peer lacks of the data
// that has left. Without calls of Inbound
// the guests' measurements of round trips are less precise, and acknowledgments on
// connections that the guest opens are held instead of lowered.
func (e *Engine) Inbound(f Frame) (changed bool) {
	changed = e.echoes(f) && e.restore(f) // by what was acknowledged before f
	e.overhear(f)
	return changed
}

// restore does the work of Inbound for a packet that echoes has parsed, and for which it
// returned true.
func (e *Engine) restore(f Frame) (changed bool) {
	p := &e.inbound
	h := p.TCP()
	k := &e.key // which lies there already
	p.Key(&k.Key)
	k.Key, k.kind = k.Reverse(), kindSegment
	c := e.conns.find(e.conns.hash(k), k)
	if c == nil {
		return false
	}
	at := 0
	scales := false
	all := h.Options()
	for kind, data, rest, ok := packet.NextOption(all); ok; kind, data, rest, ok = packet.NextOption(rest) {
		switch {
		case kind == packet.OptTimestamps && len(data) == 8:
			at = packet.TCPLen + len(all) - len(rest) - 4
		case kind == packet.OptWScale && len(data) == 1:
			scales = true
		}
	}
	c.tcp.told.answered(p, packet.VNetOf(f.Data, f.VNetHdr), scales)
	if at == 0 || after(h.Ack(), c.tcp.told.end) || p.Signed() {
		return false // no guest looks at the echo of who acknowledges what was not sent, and who changes a signed segment spoils it
	}
	echo := binary.BigEndian.Uint32(h[at:])
	was, found := c.tcp.left.echoed(echo, h.Ack(), c.tcp.flight)
	if !found {
		was = echo
	}
	if was = c.tcp.flight.floor(was, &c.tcp.left); was == echo {
		return false
	}
	binary.BigEndian.PutUint32(h[at:], was)
	if f.VNetHdr == 0 || f.Data[0]&1 == 0 {
		sum := h.Checksum()
		if at%2 != 0 { // at an odd place in the packet its bytes are the other halves of two words
			echo, was = echo<<8|echo>>24, was<<8|was>>24
		}
		h.SetChecksum(packet.Update(sum, echo, was))
	}
	return true
}

// waits reports whether an echo may still come that has to be translated.
func (l *left) waits() bool {
	for i := range l.raised {
		if l.raised != nil && l.raised[i].is {
			return true
		}
	}
	return false
}

// echoed returns the timestamp that the guest gave to the first segment, among those up to
// ack, that left with another one. It forgets the segments up to ack.
//
// A peer echoes the segment that began where its last acknowledgment ended (RFC 7323
// section 4.3). So where data before all of these was missing, the peer echoes the repetition
// that brought it, with the same timestamp, and nothing is to be translated: a guest that
// hears of an older one takes what it repeated for not lost (RFC 3522).
func (l *left) echoed(echo, ack uint32, w *flight) (was uint32, ok bool) {
	if l.raised == nil {
		return 0, false
	}
	n := uint8(len(l.raised))
	for i := range n {
		r := &l.raised[(l.next+i)%n]
		if !r.is || after(r.end, ack) {
			continue
		}
		r.is = false
		if r.sent == echo && !ok && !w.lacks(r.seq) {
			was, ok = r.was, true
		}
	}
	return was, ok
}
