package compare

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A packet of the secondary's guest may leave in the place of one of the primary's: see relay
// and paySelective. Nobody has compared what it has in front of its segment, which differs
// between two hosts by nature. So it leaves with the headers of a packet of the primary's
// guest, and with the primary's answer to marks of congestion.

// maxHead bounds the headers in front of a segment that a flight keeps, in bytes.
const maxHead = 128

// headTCP is how many bytes of the segment a head has too: up to the flags, which say how
// much congestion was marked (RFC 3168 section 6.1.3).
const headTCP = 14

// keepHead keeps the head of a frame of the primary's guest, whose segment is at l4. It keeps
// none of a segment that is signed, since the signature may be among the headers.
func (w *flight) keepHead(frame []byte, l4 int, signed bool) {
	w.head = w.head[:0]
	if !signed && l4 <= maxHead {
		w.head = append(w.head, frame[:l4+headTCP]...)
	}
}

// suits reports whether p may leave with head: there is one, and what is in front of the
// segment is as long.
func (p *pkt) suits(head []byte) bool { return len(head) == p.L4+headTCP }

// putHead gives p the head of another packet of its connection. p's memory is the engine's, its
// checksum is complete, and it has no urgent data. It leaves as a packet that is not to be
// marked: it may be a repetition, or an acknowledgment (RFC 3168 sections 6.1.4 and 6.1.5).
func (p *pkt) putHead(head []byte) {
	f := p.Packet.Frame
	copy(f[:p.L4], head)
	if p.Kind == packet.IP4 {
		f[p.L3+1] &^= 3
	} else {
		f[p.L3+1] &^= 3 << 4
	}
	p.measure()
	h := packet.TCP(f[p.L4:p.End])
	was := uint32(binary.BigEndian.Uint16(h[12:]))
	h[12] = h[12]&0xf0 | head[p.L4+12]&0x0f
	h[13] = h[13]&^congested | head[p.L4+13]&congested
	h.SetChecksum(packet.Update(h.Checksum(), was, uint32(binary.BigEndian.Uint16(h[12:]))))
}

// measure writes how long p is, up to End, into what is in front of its segment.
func (p *pkt) measure() {
	f := p.Packet.Frame
	size := p.End - p.L3
	if p.Kind == packet.IP4 {
		h := f[p.L3:p.L4]
		binary.BigEndian.PutUint16(h[2:], uint16(size))
		binary.BigEndian.PutUint16(h[10:], 0)
		binary.BigEndian.PutUint16(h[10:], packet.Checksum(h))
	} else {
		binary.BigEndian.PutUint16(f[p.L3+4:], uint16(size-packet.IPv6Len))
	}
	if p.Link.PPPoE {
		binary.BigEndian.PutUint16(f[p.L3-4:], uint16(size+2))
	}
}

// ordinary reports whether p has no options but one of timestamps and one of selective
// acknowledgments. What else a guest says with options nobody compares.
func (p *pkt) ordinary() bool {
	all := p.TCP().Options()
	times, blocks := 0, 0
	for {
		kind, data, rest, ok := packet.NextOption(all)
		if !ok {
			break
		}
		switch {
		case kind == packet.OptTimestamps && len(data) == 8:
			times++
		case kind == packet.OptSACK && len(data)%8 == 0:
			blocks++
		default:
			return false
		}
		all = rest
	}
	for _, b := range all {
		if b != packet.OptNop && b != packet.OptEnd {
			return false
		}
	}
	return times <= 1 && blocks <= 1
}
