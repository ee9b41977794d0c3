package compare

import (
	"encoding/binary"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// The guests may cut equal streams into different segments. Suppose that the secondary's
// guest has sent the first bytes of a segment of the primary, and that its congestion
// window has no room for the rest until those bytes are acknowledged. The peer cannot
// acknowledge them before the whole segment leaves. So when the secondary's guest sends
// the bytes again, that part of the segment leaves by itself; and so it does when that guest
// has said no more for a while, since it may say it again only much later. This makes a
// packet that no guest has sent, and so needs LowerAcks.

// partPatience is how long a segment of which a part is covered waits for more of it. A
// guest that goes on sends its packets closer to each other.
const partPatience = 5 * time.Millisecond

// repeats reports whether the secondary's guest has sent all of the data of s before, in
// whichever packets, and takes note of how far its data reaches. The packets of that guest
// arrive in the order in which it sent them.
func (t *said) repeats(s *pkt) bool {
	again := t.ends && s.seq != s.end && !after(s.end, t.end)
	serialMax(&t.end, &t.ends, s.end)
	return again
}

// part lets the covered part of the primary's lowest segment leave. The segment stays in
// the queue and leaves whole when its rest is covered: the peer ignores the bytes that it
// has.
func (e *Engine) part(c *conn) {
	if !e.partly(c) {
		return
	}
	t, p := &c.tcp, c.p.at(0)
	v := &t.cover
	if !e.ackOK(t, p) {
		return
	}
	from, n := int(v.done-p.seq), int(p.ok-v.done)
	if h := packet.VNetOf(p.Data, p.VNetHdr); h != nil && h.GSOType() != packet.GSONone && h.GSOSize() > 0 {
		n = min(n, h.GSOSize()) // the copy is not to be cut any more
	}
	q := e.cut(c, p, p.dat+from, p.dat+from+n, v.done, p.flags&packet.ACK|packet.PSH)
	q.at, q.id = p.at, p.id
	v.reaches(q.end)
	e.leave(c, q, &e.stats.Matched)
	e.consume(c)
}

// partly reports whether the primary's lowest segment waits, and a part of it is covered that
// has not left.
func (e *Engine) partly(c *conn) bool {
	const odd = packet.SYN | packet.RST | packet.URG
	if !e.cfg.LowerAcks || c.p.len() == 0 || c.blind || c.apart {
		return false
	}
	p, v := c.p.at(0), &c.tcp.cover
	return p.flags&odd == 0 && !p.signed && !v.fin && v.agreed && v.inStep && !after(p.seq, v.done) && after(p.ok, v.done) && after(p.end, p.ok)
}

// dates notes, when a packet of c has come, since when the same part of its lowest segment
// is covered.
func (e *Engine) dates(c *conn) {
	if !e.partly(c) {
		return
	}
	ok := c.p.at(0).ok
	switch {
	case c.partial.IsZero():
		e.partials = append(e.partials, c)
	case c.partOK == ok:
		return
	}
	c.partial, c.partOK = e.now, ok
	e.sooner(e.now.Add(partPatience))
}

// tickPartials has the covered parts leave that have waited long enough for more.
func (e *Engine) tickPartials() {
	wait := e.partials[:0]
	for _, c := range e.partials {
		until := c.partial.Add(partPatience)
		switch {
		case c.partial.IsZero() || !e.partly(c):
			c.partial = 0
		case e.now.Before(until):
			e.sooner(until)
			wait = append(wait, c)
		default:
			c.partial = 0
			for v, more := &c.tcp.cover, true; more; {
				done := v.done
				e.part(c)
				more = done != v.done && e.partly(c)
			}
		}
	}
	clear(e.partials[len(wait):])
	e.partials = wait
}

// congested has the flags CWR and ECE.
const congested = 0xc0

// cut returns a copy of p that leaves by itself, with the given flags and the data between
// two offsets of the frame, whose first byte has the number seq. The checksum is complete,
// so that no device has anything left to do.
func (e *Engine) cut(c *conn, p *pkt, from, to int, seq uint32, flags uint8) *pkt {
	whole := p.Data
	vnet := p.VNetHdr
	p.Data = p.Data[:vnet+to] // it is long enough for what the pool copies
	q := e.pool.copy(p)
	p.Data = whole
	q.owner, q.age = c, c.age
	end := q.dat + copy(q.Packet.Frame[q.dat:], q.Packet.Frame[from:])
	q.Data = q.Data[:vnet+end]
	q.Packet.Frame = q.Data[vnet:]
	clear(q.Data[:vnet])
	f := q.Packet.Frame
	q.End = end
	q.measure()
	q.seq, q.flags = seq, flags
	q.end = seq + uint32(end-q.dat)
	q.ok = q.end
	h := packet.TCP(f[q.L4:q.End])
	h.SetSeq(seq)
	h[13] = flags | h[13]&congested       // an echo of congestion is in each packet (RFC 3168 section 6.1.3)
	binary.BigEndian.PutUint16(h[18:], 0) // there is no urgent data
	h.SetChecksum(q.TCPChecksum())
	return q
}
