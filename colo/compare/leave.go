package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// What leaves may have another acknowledgment number, window, timestamp and SACK
// blocks than the guest gave it. The peer sees one guest, which says no more than
// both have, and takes nothing back.

// A raised is a segment that left with a newer timestamp than the guest's. The
// peer's echo is translated back by it.
type raised struct {
	end       uint32 // of the segment: who acknowledges it may echo
	was, sent uint32
	is        bool
}

// An edit is how a segment is to leave.
type edit struct {
	ack  uint32
	win  uint16
	ts   uint32
	sack ranges // with cut
	cut  bool   // not all of its SACK blocks are to leave

	edge  uint32 // of the window, by ack and win
	edges bool   // edge is known
}

// leave lets a segment of the primary's leave, as the peer may see it.
func (e *Engine) leave(c *conn, p *pkt, count *uint64) {
	t := &c.tcp
	if count == &e.stats.Matched {
		c.agreed()
	}
	if p.class >= 0 && (p.owner != c || p.age != c.age) {
		// It is of the connection before this one, or nobody knows of which, and a
		// checkpoint covers it.
		newest, known := t.left.past, t.left.pasts
		if p.owner == nil {
			newest, known = t.left.ts, t.left.tss
		}
		d := edit{ack: p.ack, win: p.win, ts: p.stamp(newest, known)}
		p = e.apply(p, &d)
		e.release(p, count)
		return
	}
	d := e.edit(t, p)
	if e.cfg.LowerAcks && p.flags&packet.ACK != 0 && p.flags&(packet.SYN|packet.RST) == 0 && !p.bare() {
		// What it leaves unsaid is owed to the peer.
		edge, ok := t.told.edgeOf(p)
		if after(p.ack, d.ack) || ok && after(edge, d.edge) {
			e.owe(c, e.ackOf(c, p))
		} else if c.owed != nil && !after(c.owed.ack, d.ack) {
			e.settle(c)
		}
	}
	if d.ts != 0 && p.ts > 0 && d.ts != binary.BigEndian.Uint32(p.Packet.Frame[p.ts:]) {
		if t.left.raised == nil {
			t.left.raised = new([8]raised) // rare: something was lost
		}
		t.left.raised[t.left.next%uint8(len(t.left.raised))] = raised{
			end: p.end, was: binary.BigEndian.Uint32(p.Packet.Frame[p.ts:]), sent: d.ts, is: true,
		}
		t.left.next++
		e.raised = true // until a mark finds that all is answered
	}
	if e.cfg.LowerAcks && p.owner == c && count == &e.stats.Checkpoint && p.bare() && after(p.ack, d.ack) {
		e.owe(c, e.hold(c, p)) // a later mark allows less
	}
	p = e.apply(p, &d)
	t.left.note(p, &d, t.told.scale)
	e.release(p, count)
}

// edit says how p is to leave now.
func (e *Engine) edit(t *stream, p *pkt) (d edit) {
	l := &t.left
	d = edit{ack: p.ack, win: p.win, ts: p.stamp(l.ts, l.tss)}
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
	if !p.bare() && l.acks && after(l.ack, d.ack) {
		d.ack = l.ack // it has waited, and others have left
	}
	if d.edges && (d.ack != p.ack || v.edges && after(d.edge, v.edge)) {
		t.window(&d)
	}
	if p.nsck > 0 {
		all := p.blocks()
		for _, b := range all.at[:all.n] {
			one := ranges{n: 1}
			if one.at[0] = b; after(b[1], d.ack) { // or a duplicate (RFC 2883), which nobody waits for
				one = one.and(&v.sack)
			}
			for _, b := range one.at[:one.n] {
				d.sack.add(b[0], b[1])
			}
		}
		d.cut = d.sack != all
	}
	return d
}

// stamp returns the timestamp with which p leaves, after one with newest. What
// leaves later is never older (RFC 7323 section 5): it would be dropped.
func (p *pkt) stamp(newest uint32, known bool) uint32 {
	if p.ts == 0 {
		return 0
	}
	ts := binary.BigEndian.Uint32(p.Packet.Frame[p.ts:])
	if known && !p.signed && after(newest, ts) {
		return newest
	}
	return ts
}

// window sets the window that goes with an acknowledgment number that may be
// lower than the guest's: as far as both guests have room, and never less far than
// was said before.
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

// lowers reports whether p could leave with a lower number: its window is known, and
// nothing vouches for the number that it has.
func (t *stream) lowers(p *pkt) bool {
	return !p.signed && t.told.scaled && p.flags&(packet.SYN|packet.ACK) == packet.ACK
}

// apply returns p, or a copy if it is the caller's, with what d says.
func (e *Engine) apply(p *pkt, d *edit) *pkt {
	stamped := p.ts > 0 && d.ts != binary.BigEndian.Uint32(p.Packet.Frame[p.ts:])
	if !stamped && !d.cut && d.ack == p.ack && d.win == p.win {
		return p
	}
	if p.class < 0 {
		p = e.pool.copy(p)
	}
	f := p.Packet.Frame
	head := f[p.L4:p.dat]
	h := packet.TCP(head)
	was := packet.Sum(packet.Sum(0, head[4:16]), head[18:])
	h.SetAck(d.ack)
	binary.BigEndian.PutUint16(head[14:], d.win)
	p.ack, p.win = d.ack, d.win
	if stamped {
		binary.BigEndian.PutUint32(f[p.ts:], d.ts)
	}
	if d.cut {
		p.cutSACK(&d.sack)
	}
	// A checksum that the device has yet to finish is that of the pseudo-header
	// only (virtio 1.2 section 5.1.6.2).
	if p.VNetHdr == 0 || p.Data[0]&1 == 0 {
		now := packet.Sum(packet.Sum(0, head[4:16]), head[18:])
		h.SetChecksum(packet.Update(h.Checksum(), uint32(was), uint32(now)))
	}
	return p
}

// cutSACK makes the option say r. What is too much becomes padding.
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

// note takes in what has left.
func (l *left) note(p *pkt, d *edit, scale uint8) {
	if p.ts > 0 {
		serialMax(&l.ts, &l.tss, d.ts)
	}
	if p.flags&packet.ACK == 0 {
		return
	}
	win := d.win
	l.last = p.id
	if p.flags&packet.SYN != 0 {
		if l.acks {
			return // it says nothing new of the window, which it cannot scale
		}
		win >>= scale
	}
	if !l.acks || after(d.ack, l.ack) || d.ack == l.ack && win > l.win {
		l.ack, l.acks, l.win = d.ack, true, win
	}
	if d.edges {
		serialMax(&l.edge, &l.edges, d.edge)
	}
	if p.nsck > 0 {
		l.sack = p.blocks()
	}
}

// echoes reports whether Inbound could have something to do with f.
func (e *Engine) echoes(f Frame) bool {
	if e.strict != nil || !f.fits() || len(f.Data) > maxFrame {
		return false
	}
	p := &e.inbound
	p.Parse(f.Data[f.VNetHdr:])
	if !p.IsTCP() {
		return false
	}
	flags := p.TCP().Flags() & (packet.SYN | packet.ACK)
	return flags == packet.SYN|packet.ACK || e.raised && flags == packet.ACK
}

// Inbound takes a packet to the guest, before either guest has it. It translates
// an echo of a timestamp that has left instead of the guest's own, in place, with
// the checksum; changed says that it has. The engine learns the peer's window
// scale from it. A caller without it loses that precision, and acknowledgments of
// connections that the guest opens are then held and not lowered.
func (e *Engine) Inbound(f Frame) (changed bool) {
	if !e.echoes(f) {
		return false
	}
	p := &e.inbound
	h := p.TCP()
	var k connKey
	p.Key(&k.Key)
	k.Key, k.kind = k.Reverse(), kindSegment
	c := e.conns.find(e.conns.hash(&k), &k)
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
	if t := &c.tcp.told; h.Flags()&packet.SYN != 0 && t.open && !t.scaled && h.Ack() == t.isn+1 {
		if t.scaled = true; !scales {
			t.scale = 0
		}
	}
	if at == 0 {
		return false
	}
	echo := binary.BigEndian.Uint32(h[at:])
	was, found := c.tcp.left.echoed(echo, h.Ack())
	if !found || was == echo {
		return false
	}
	binary.BigEndian.PutUint32(h[at:], was)
	if f.VNetHdr == 0 || f.Data[0]&1 == 0 {
		sum := h.Checksum()
		if at%2 != 0 { // each half is at the other place in its word
			echo, was = echo<<8|echo>>24, was<<8|was>>24
		}
		h.SetChecksum(packet.Update(sum, echo, was))
	}
	return true
}

// waits reports whether an echo may still have to be translated.
func (l *left) waits() bool {
	for i := range l.raised {
		if l.raised != nil && l.raised[i].is {
			return true
		}
	}
	return false
}

// echoed returns the guest's own timestamp of the first segment that left with
// another one and that ack covers. What is covered is forgotten.
func (l *left) echoed(echo, ack uint32) (was uint32, ok bool) {
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
		if r.sent == echo && !ok {
			was, ok = r.was, true
		}
	}
	return was, ok
}
