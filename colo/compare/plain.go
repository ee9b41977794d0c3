package compare

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Nearly all packets are plain: a TCP segment right behind an IP header without
// options or extensions, with nothing but data and an acknowledgment in it, on a
// connection that is in step. What the engine does with them is here again, for
// these only, in one look at the headers and without a copy of what is known of
// the packet. Whatever is not plain, or would need more than the next step of the
// stream, has changed nothing when it is left to the rest of the engine, which
// does the same with all packets.

// A plain has the header fields of a plain segment.
type plain struct {
	frame    []byte // without the virtio-net header
	l4, dat  int    // where the segment, and its data, begin
	end      int    // where the data ends
	seq, ack uint32
	last     uint32 // seq and the length of the data
	ports    uint32
	src, dst uint32 // the first four bytes of its addresses
	stamp    uint32 // the value of its timestamps
	ts       int    // where that is; 0: it has none
	win      uint16
	flags    uint8
	kind     packet.Kind // IP4 or IP6
}

// optStamps is how the options of nearly all segments with timestamps begin: NOP,
// NOP, kind 8, length 10 (RFC 7323 appendix A).
const optStamps = 0x0101080a

// parse sets s to the header fields of f, and reports whether f is plain.
func (s *plain) parse(f *Frame) bool {
	if uint(f.VNetHdr) > uint(len(f.Data)) || len(f.Data) > maxFrame {
		return false
	}
	b := f.Data[f.VNetHdr:]
	if len(b) < packet.EthernetLen+packet.IPv4Len+packet.TCPLen {
		return false
	}
	l4, end := packet.EthernetLen+packet.IPv4Len, 0
	switch binary.BigEndian.Uint16(b[12:]) {
	case packet.TypeIPv4:
		if b[14] != 0x45 || b[23] != packet.ProtoTCP || binary.BigEndian.Uint16(b[20:])&0x3fff != 0 {
			return false
		}
		end = packet.EthernetLen + int(binary.BigEndian.Uint16(b[16:]))
		s.kind, s.src, s.dst = packet.IP4, binary.LittleEndian.Uint32(b[26:]), binary.LittleEndian.Uint32(b[30:])
	case packet.TypeIPv6:
		if b[14]>>4 != 6 || b[20] != packet.ProtoTCP {
			return false
		}
		l4 = packet.EthernetLen + packet.IPv6Len
		end = l4 + int(binary.BigEndian.Uint16(b[18:]))
		s.kind, s.src, s.dst = packet.IP6, binary.LittleEndian.Uint32(b[22:]), binary.LittleEndian.Uint32(b[38:])
	default:
		return false
	}
	if end > len(b) || end < l4+packet.TCPLen {
		return false
	}
	h := b[l4:end]
	s.flags = h[13]
	if s.flags&(packet.SYN|packet.FIN|packet.RST|packet.URG|packet.ACK) != packet.ACK {
		return false
	}
	switch h[12] >> 4 {
	case packet.TCPLen / 4:
		s.dat, s.ts, s.stamp = l4+packet.TCPLen, 0, 0
	case packet.TCPLen/4 + 3:
		if len(h) < packet.TCPLen+12 || binary.BigEndian.Uint32(h[packet.TCPLen:]) != optStamps {
			return false
		}
		s.dat, s.ts, s.stamp = l4+packet.TCPLen+12, l4+packet.TCPLen+4, binary.BigEndian.Uint32(h[packet.TCPLen+4:])
	default:
		return false
	}
	if f.VNetHdr > 0 {
		if h := packet.VNetOf(f.Data, f.VNetHdr); !finishes(h, l4) || !h.Cuts(s.kind, packet.ProtoTCP) {
			return false
		}
	}
	s.frame, s.l4, s.end = b, l4, end
	s.ports, s.seq, s.ack, s.win = binary.BigEndian.Uint32(h), binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint16(h[14:])
	s.last = s.seq + uint32(end-s.dat)
	return true
}

// finishes reports whether a virtio-net header has the device finish no checksum, or
// that of the TCP segment at l4: anywhere else it would write over what was compared. A
// header that does not say where means the only checksum that the packet has.
func finishes(h packet.VNet, l4 int) bool {
	if h == nil || h.Flags()&packet.VNetNeedsCsum == 0 {
		return true
	}
	at, off := h.CsumStart(), h.CsumOffset()
	return at == l4 && off == packet.TCPChecksumAt || at == 0 && off == 0
}

func (s *plain) data() []byte { return s.frame[s.dat:s.end] }

// bare reports whether s is an acknowledgment and nothing else.
func (s *plain) bare() bool { return s.dat == s.end }

// plain returns the kind of k's packets if plain segments have such keys, or 0.
func (k *connKey) plain() packet.Kind {
	if k.kind != kindSegment || k.Layers != 0 || k.VLAN != 0 || k.Outer != 0 || k.Proto != packet.ProtoTCP {
		return 0
	}
	return k.Kind
}

// isPlain reports whether s belongs to the connection that has the fields kind and key. It is
// inlined.
func (k *connKey) isPlain(kind packet.Kind, s *plain) bool {
	return k.Ports == s.ports && kind == s.kind && binary.LittleEndian.Uint32(k.Src[:]) == s.src &&
		binary.LittleEndian.Uint32(k.Dst[:]) == s.dst && (kind == packet.IP4 || k.isPlain6(s))
}

// isPlain6 reports whether k has the addresses of s, a segment of IPv6.
func (k *connKey) isPlain6(s *plain) bool {
	b := (*[32]byte)(s.frame[packet.EthernetLen+8:])
	return k.Src == [16]byte(b[:16]) && k.Dst == [16]byte(b[16:])
}

// plainConn returns the connection of s, or nil if there is none.
func (e *Engine) plainConn(s *plain) *conn {
	if c := e.lastConn; c != nil && c.key.isPlain(c.plain, s) {
		return c
	}
	x := &e.conns
	var h uint64
	if s.kind == packet.IP4 {
		h = x.hash4(s)
	} else {
		h = x.hash6(s)
	}
	h = x.hashPorts(h, s)
	mask := uint64(len(x.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		t := x.slots[i]
		if t == 0 {
			return nil
		}
		if t.may(h) {
			if c := x.all[t.number()]; c.key.isPlain(c.plain, s) {
				e.lastConn = c
				return c
			}
		}
	}
}

// leavesAsItIs reports whether edit would leave s unchanged.
func (e *Engine) leavesAsItIs(t *stream, s *plain) bool {
	l, v := &t.left, &t.cover
	switch {
	case s.ts > 0 && l.tss && after(l.ts, s.stamp):
		return false
	case !e.cfg.LowerAcks:
		return true
	case !acknowledged(s.ack, v.ack), !s.bare() && l.acks && after(l.ack, s.ack), s.bare() && l.ends && after(s.seq, l.end) && !t.said.reaches(s.seq):
		return false
	}
	return !(t.told.scaled && v.edges && after(s.ack+uint32(s.win)<<t.told.scale, v.edge))
}

// notePlain does what told.note does, for a plain segment.
func (t *told) notePlain(s *plain) {
	serialMax(&t.ack, &t.acks, s.ack)
	if t.scaled {
		serialMax(&t.edge, &t.edges, s.ack+uint32(s.win)<<t.scale)
	}
	serialMax(&t.end, &t.data, s.last)
}

// notePlain does what left.note does, but for the timestamp, for a plain segment that leaves
// unchanged, and for its place in the order of arrival. It is inlined.
func (l *left) notePlain(t *told, ack uint32, win uint16) {
	if !l.acks || after(ack, l.ack) || ack == l.ack && win > l.win {
		l.ack, l.acks, l.win = ack, true, win
	}
	if t.scaled {
		serialMax(&l.edge, &l.edges, ack+uint32(win)<<t.scale)
	}
}

// primaryPlain does what Primary does if f is a plain segment and nothing but the usual
// step follows from it. ok reports that; otherwise nothing has changed.
func (e *Engine) primaryPlain(f *Frame, now time.Time) (ok bool) {
	s := &e.plain
	if e.passing || e.thorough || !s.parse(f) || 2*(e.pool.bytes+atMost(len(f.Data))) > e.cfg.MaxBytes {
		return false
	}
	c := e.plainConn(s)
	if c == nil || c.apart || c.blind || c.loner != neither || c.owed != nil || c.p.len() > e.cfg.MaxQueue {
		return false
	}
	t := &c.tcp
	v := &t.cover
	var lent *pkt
	switch {
	case t.said.rsts || t.said.fins || t.said.syns:
		return false
	case s.bare():
		// An acknowledgment leaves if the secondary's guest has given it too.
		if !e.cfg.LowerAcks || !v.acks || !acknowledged(s.ack, v.ack) || !e.leavesAsItIs(t, s) {
			return false
		}
	case !v.agreed || !v.ahead(s.last):
		return false
	case e.cfg.LowerAcks && t.told.data && !after(s.last, t.told.end):
		return false // it is a repetition
	case c.s.len() == 0:
		// It waits for the secondary's guest to send the same.
		from := s.seq
		if n := c.p.len(); n > 0 {
			if after(c.p.at(n-1).seq, s.seq) {
				return false
			}
		} else if !v.ahead(from) {
			if from != v.done && t.flight != nil {
				return false // it repeats something, beside what is new
			}
			from = v.done
		} else if t.told.pieces && from != v.done {
			return false // what is before it may have come in fragments
		}
		e.arrive(c, now)
		e.compared = e.now
		t.told.notePlain(s)
		q := e.holdPlain(c, f, s)
		q.ok = from
		c.p.push(q)
		return true
	default:
		// The secondary's guest may have said it before.
		if w := c.s.at(0); c.p.len() > 0 || w.seq != s.seq || w.end != s.last || !v.inStep || v.done != s.seq || v.fin ||
			!v.acks || !acknowledged(s.ack, v.ack) || !e.leavesAsItIs(t, s) || !bytes.Equal(w.data(), s.data()) {
			return false
		}
		v.reaches(s.last)
		lent = e.lend(c, f, s)
		e.consume(c)
	}
	e.arrive(c, now)
	e.compared = e.now
	t.told.notePlain(s)
	c.agreed()
	if s.ts > 0 {
		t.left.ts, t.left.tss = s.stamp, true // leavesAsItIs: it is no older
	}
	if !s.bare() {
		serialMax(&t.left.end, &t.left.ends, s.last)
	}
	t.left.last = e.ids
	t.left.notePlain(&t.told, s.ack, s.win)
	if w := t.flight; w != nil && !s.bare() {
		w.leave(s.last, e.now)
		e.record(c, s.seq, s.data(), f, s.l4, false)
	}
	e.stats.Matched++
	e.waits.Add(0)
	e.trail(0)
	if lent == nil {
		e.out, e.spent = append(e.out, *f), append(e.spent, spent{at: e.now})
	} else {
		lent.at = e.now
		e.out, e.spent = append(e.out, lent.Frame), append(e.spent, spent{at: e.now, p: lent})
	}
	return true
}

// secondaryPlain does what Secondary does, as primaryPlain does for Primary.
func (e *Engine) secondaryPlain(f *Frame, now time.Time) (ok bool) {
	s := &e.plain
	if e.passing || e.deaf || e.thorough || !s.parse(f) || 2*(e.pool.bytes+atMost(len(f.Data))) > e.cfg.MaxBytes {
		return false
	}
	c := e.plainConn(s)
	if c == nil || c.apart || c.blind || c.diverged || c.loner != neither || c.owed != nil || c.s.len() > e.cfg.MaxQueue {
		return false
	}
	t := &c.tcp
	v := &t.cover
	if t.said.past || t.said.syns {
		return false
	}
	if s.bare() {
		if c.p.len() > 0 {
			return false // the owed acknowledgment may wait for this packet
		}
		e.arrive(c, now)
		t.hearPlain(s)
		return true
	}
	if !v.agreed || !v.ahead(s.last) {
		return false
	}
	if e.cfg.LowerAcks && t.said.ends && !after(s.last, t.said.end) {
		return false // it is a repetition
	}
	if c.p.len() == 0 {
		if n := c.s.len(); n > 0 && after(c.s.at(n-1).seq, s.seq) {
			return false
		}
		e.arrive(c, now)
		t.hearPlain(s)
		c.s.push(e.holdPlain(c, f, s))
		return true
	}
	// In nearly all cases the primary's guest has just said the same.
	p := c.p.at(0)
	if c.s.len() > 0 || p.seq != s.seq || p.end != s.last || p.ok != s.seq || p.owner != c || p.age != c.age ||
		p.flags&(packet.SYN|packet.FIN|packet.RST|packet.URG|packet.ACK) != packet.ACK || p.nsck > 0 ||
		!v.inStep || v.done != s.seq || v.fin {
		return false
	}
	// The acknowledgment and the window that cover p may be in s itself.
	room := v.edge
	if t.told.scaled {
		known := v.edges
		serialMax(&room, &known, s.ack+uint32(s.win)<<t.told.scale)
	}
	ack, known := v.ack, v.acks
	serialMax(&ack, &known, s.ack)
	l := &t.left
	edge := p.ack + uint32(p.win)<<t.told.scale
	if !acknowledged(p.ack, ack) || e.cfg.LowerAcks && (l.acks && after(l.ack, p.ack) || t.told.scaled && (after(edge, room) || p.id < l.last && l.edges && after(l.edge, edge))) {
		return false
	}
	stamp := uint32(0)
	if p.ts > 0 {
		if stamp = binary.BigEndian.Uint32(p.Packet.Frame[p.ts:]); l.tss && after(l.ts, stamp) {
			return false
		}
	}
	if !bytes.Equal(p.data(), s.data()) {
		return false
	}
	e.arrive(c, now)
	t.hearPlain(s)
	c.p.remove(0)
	v.reaches(s.last)
	c.agreed()
	if p.ts > 0 {
		l.ts, l.tss = stamp, true
	}
	l.last = max(l.last, p.id)
	serialMax(&l.end, &l.ends, s.last)
	l.notePlain(&t.told, p.ack, p.win)
	if w := t.flight; w != nil {
		w.leave(s.last, e.now)
		e.record(c, p.seq, p.data(), &p.Frame, p.L4, p.signed)
	}
	// What release does, for a packet in memory of the engine.
	e.stats.Matched++
	e.waits.Add(e.now.Sub(p.at))
	e.trails(p.at)
	e.out, e.spent = append(e.out, p.Frame), append(e.spent, spent{at: p.at, p: p})
	if c.p.len() > 0 {
		e.advance(c, false)
	}
	return true
}

// hearPlain does what hear does, for a plain segment of the secondary's guest.
func (t *stream) hearPlain(s *plain) {
	serialMax(&t.said.end, &t.said.ends, s.last)
	v := &t.cover
	serialMax(&v.ack, &v.acks, s.ack)
	if t.told.scaled {
		serialMax(&v.edge, &v.edges, s.ack+uint32(s.win)<<t.told.scale)
	}
	if v.sack.n > 0 {
		v.sack.pass(v.ack)
	}
}

// arrive notes that a packet of c has come. The engine knows when it began, since another
// packet has made c.
func (e *Engine) arrive(c *conn, now time.Time) {
	e.ids++
	e.now = max(1, instant(now.Sub(e.began)))
	c.used = e.now
}

// holdPlain does what hold does, for a plain segment whose frame is f.
func (e *Engine) holdPlain(c *conn, f *Frame, s *plain) *pkt {
	var q *pkt
	if e.drafted != nil {
		q = e.adopt(f) // it is the only packet of this call
	}
	if q == nil {
		q = e.pool.get(len(f.Data))
		copy(q.Data, f.Data)
	} else {
		e.pool.bytes += sizeOf(q.class)
	}
	q.VNetHdr = f.VNetHdr
	q.id, q.at, q.owner, q.age, q.turn = e.ids, e.now, c, c.age, false

	// The fields are set one by one, since a literal would be made elsewhere and copied.
	h, g := &q.Packet, &q.segment
	if q.shape != s.kind {
		q.takeShape(s)
	}
	h.Frame, h.End = q.Data[f.VNetHdr:], s.end
	g.dat, g.seq, g.ack, g.end, g.ok = s.dat, s.seq, s.ack, s.last, s.seq
	g.win, g.flags, g.waitsAck, g.ts = s.win, s.flags, false, s.ts
	return q
}

// takeShape sets the fields of p in which all plain segments of one kind are equal. They stay as
// they are as long as p has packets of that kind.
func (p *pkt) takeShape(s *plain) {
	p.shape = s.kind
	p.Packet = packet.Packet{
		Kind: s.kind, Type: packet.TypeIPv4, L3: packet.EthernetLen, L4: s.l4, Proto: packet.ProtoTCP, First: true, L4OK: true,
	}
	if s.kind == packet.IP6 {
		p.Packet.Type = packet.TypeIPv6
	}
	p.segment = segment{is: true}
}
