package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// The guests cut their streams differently. A secondary's guest that has said the
// first bytes of a segment of the primary's may have no room in its congestion window
// to say the rest, until those are acknowledged; and the peer does not know them
// before the whole segment leaves. So when it says again what it has said, the part
// of the segment that is covered leaves by itself (with LowerAcks: without it
// nothing leaves that no guest has made).

// repeats reports whether all of the data of s has been said before, in whichever
// packets, and takes in how far it goes. What reaches us of that guest is in the order
// in which it was sent.
func (t *said) repeats(s *pkt) bool {
	again := t.ends && s.seq != s.end && !after(s.end, t.end)
	serialMax(&t.end, &t.ends, s.end)
	return again
}

// part lets leave what is covered of the primary's lowest segment. That stays, and
// leaves whole when the rest is covered: the peer takes no byte twice.
func (e *Engine) part(c *conn) {
	if !e.cfg.LowerAcks || c.p.len() == 0 || c.blind || c.apart {
		return
	}
	t, p := &c.tcp, c.p.at(0)
	v := &t.cover
	const odd = packet.SYN | packet.RST | packet.URG
	if p.flags&odd != 0 || p.signed || !v.agreed || !v.inStep || after(p.seq, v.done) || !after(p.ok, v.done) || !after(p.end, p.ok) || !e.ackOK(t, p) {
		return
	}
	from, n := int(v.done-p.seq), int(p.ok-v.done)
	if h := packet.VNetOf(p.Data, p.VNetHdr); h != nil && h.GSOType() != packet.GSONone && h.GSOSize() > 0 {
		n = min(n, h.GSOSize()) // it is not to be cut any more
	}
	q := e.cut(c, p, p.dat+from, p.dat+from+n, v.done, packet.ACK|packet.PSH)
	q.at, q.id = p.at, p.id
	v.done = q.end
	e.leave(c, q, &e.stats.Matched)
	e.consume(c)
}

// cut returns a copy of p, to leave by itself, with the data between two offsets of
// the frame, which begin with seq, and the flags that it is given. Its checksum is
// complete, and it is not to be cut by a device.
func (e *Engine) cut(c *conn, p *pkt, from, to int, seq uint32, flags uint8) *pkt {
	whole := p.Data
	vnet := p.VNetHdr
	p.Data = p.Data[:vnet+to] // in the way that the pool copies
	q := e.pool.copy(p)
	p.Data = whole
	q.owner, q.age = c, c.age
	end := q.dat + copy(q.Packet.Frame[q.dat:], q.Packet.Frame[from:])
	q.Data = q.Data[:vnet+end]
	q.Packet.Frame = q.Data[vnet:]
	clear(q.Data[:vnet])
	f := q.Packet.Frame
	size := end - q.L3
	if q.Kind == packet.IP4 {
		h := f[q.L3:q.L4]
		binary.BigEndian.PutUint16(h[2:], uint16(size))
		binary.BigEndian.PutUint16(h[10:], 0)
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
	} else {
		binary.BigEndian.PutUint16(f[q.L3+4:], uint16(size-packet.IPv6Len))
	}
	if q.Link.PPPoE {
		binary.BigEndian.PutUint16(f[q.L3-4:], uint16(size+2))
	}
	q.End = end
	q.seq, q.flags = seq, flags
	q.end = seq + uint32(end-q.dat)
	q.ok = q.end
	h := packet.TCP(f[q.L4:q.End])
	h.SetSeq(seq)
	h[13] = flags
	binary.BigEndian.PutUint16(h[18:], 0) // nothing is urgent
	h.SetChecksum(q.TCPChecksum())
	return q
}
