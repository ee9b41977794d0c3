package compare

import (
	"bytes"

	"github.com/gocolo/lockstep/internal/packet"
)

// Packets that are no TCP segments are compared one by one: a packet of one side matches
// the oldest of the other side that equals it.

// crossMax is how many packets of each side may wait on one flow for equals that may come
// in another order.
const crossMax = 8

func (e *Engine) primaryOther(c *conn, p *pkt) {
	if !c.blind && !c.apart {
		for i, s := range c.s.all() {
			if same(p, s) && c.joins(p, s, e.now) {
				e.pool.put(c.s.remove(i))
				e.release(p, &e.stats.Matched)
				e.paired(c)
				return
			}
		}
	}
	q := e.hold(c, p)
	c.p.push(q)
	e.torn(c, q)
	e.unpaired(c, q, &c.s)
}

func (e *Engine) secondaryOther(c *conn, s *pkt) {
	if c.apart || c.blind {
		e.stats.Dropped++ // no packet of the primary waits for it
		return
	}
	for i, p := range c.p.all() {
		if same(p, s) && c.joins(p, s, e.now) {
			c.p.remove(i)
			e.release(p, &e.stats.Matched)
			e.paired(c)
			return
		}
	}
	q := e.hold(c, s)
	c.s.push(q)
	e.torn(c, q)
	e.unpaired(c, q, &c.p) // which looks at q only if it still waits
}

// paired is called when two packets of c have matched.
func (e *Engine) paired(c *conn) {
	c.agreed()
	if c.p.len() == 0 || c.s.len() == 0 {
		e.uncross(c)
	}
	if c.s.len() == 0 {
		e.recovered(c)
	}
}

// unpaired is called when p equals no packet of the other side that waits. The guests may
// have sent the same packets in two orders, and then p's equal is still to come.
func (e *Engine) unpaired(c *conn, p *pkt, others *queue) {
	if c.blind || c.apart || others.len() == 0 {
		return
	}
	never := c.key.kind != kindDatagram || c.p.len() > crossMax && c.s.len() > crossMax
	for _, q := range others.all() {
		never = never || rivals(p, q)
	}
	if never {
		e.diverge(c, ReasonPacket)
		return
	}
	if c.crossed.IsZero() {
		c.crossed = e.now
		e.crossing = append(e.crossing, c)
		e.sooner(e.now.Add(e.cfg.Cross))
	}
}

func (e *Engine) uncross(c *conn) {
	if c.crossed.IsZero() {
		return
	}
	for i, d := range e.crossing {
		if d == c {
			last := len(e.crossing) - 1
			e.crossing[i] = e.crossing[last]
			e.crossing[last] = nil
			e.crossing = e.crossing[:last]
			break
		}
	}
	c.crossed = 0
}

// offloads reports whether a device can do to p, a TCP segment, what its virtio-net header
// says, and does not write over what was compared.
func (p *pkt) offloads(h packet.VNet) bool { return finishes(h, p.L4) && h.Cuts(p.Kind, p.Proto) }

// sameOffload reports whether a device would send the same for two equal packets,
// as their virtio-net headers tell it to. Without such a header, or with one that
// is too short, it changes nothing.
func sameOffload(p, s *pkt) bool {
	h, g := packet.VNetOf(p.Data, p.VNetHdr), packet.VNetOf(s.Data, s.VNetHdr)
	if h == nil {
		return true
	}
	if h.GSOType() != packet.GSONone && (p.Fragment || !h.Cuts(p.Kind, p.Proto)) && !bytes.Equal(h, g) {
		return false // nobody knows what a device makes of it
	}
	if data, ok := p.Body(); ok && p.Proto == packet.ProtoUDP {
		n, size := h.Datagrams(data)
		if m, other := g.Datagrams(data); n != m || size != other {
			return false
		}
	}
	if h.Flags()&g.Flags()&packet.VNetNeedsCsum != 0 && h.CsumStart() == g.CsumStart() && h.CsumOffset() == g.CsumOffset() &&
		h.CsumStart() >= max(p.L4, s.L4) {
		return true // what is summed up, and where that goes, has been compared
	}
	return p.completes(h) // that is what leaves
}

// completes reports whether the virtio-net header of p, which is no TCP segment, has the
// device finish no checksum, or p's own: anywhere else it would write over what was
// compared. A header that does not say where means the only checksum that the packet
// has.
func (p *pkt) completes(h packet.VNet) bool {
	if h == nil || h.Flags()&packet.VNetNeedsCsum == 0 {
		return true
	}
	field := packet.ICMPChecksumAt
	switch p.Proto {
	case packet.ProtoUDP:
		field = packet.UDPChecksumAt
	case packet.ProtoICMP, packet.ProtoICMPv6:
	default:
		return false
	}
	return p.L4OK && !p.Fragment && h.PartialChecksum(&p.Packet, field)
}

// rivals reports whether p and q, which differ, are two answers to one question, so that
// neither will meet its equal later: echo replies of the same number, errors of ICMP that
// quote the same packet, or datagrams of which one begins with the other. Packets of
// protocols other than UDP and ICMP always are, since guests do not send these in two
// orders.
func rivals(p, q *pkt) bool {
	a, b := p.Payload(), q.Payload()
	if p.VNetHdr != q.VNetHdr {
		return true
	}
	switch p.Proto {
	case packet.ProtoUDP:
		n := min(len(a), len(b))
		return len(a) != len(b) && n > packet.UDPLen && bytes.Equal(a[packet.UDPLen:n], b[packet.UDPLen:n])
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if !bytes.Equal(a[:2], b[:2]) {
			return false
		}
		if p.ICMPError() {
			n := min(len(a), len(b))
			return bytes.Equal(a[packet.ICMPLen:n], b[packet.ICMPLen:n])
		}
		return bytes.Equal(a[4:8], b[4:8])
	}
	return true
}

// same compares two packets of one flow. Of a virtio-net header its length is
// compared, which says what the guest's driver has agreed upon, and what it has a
// device do to the packet: how to cut it, and where to finish a checksum. If only the
// primary's header has a checksum finished, that must be the packet's own.
func same(p, s *pkt) bool {
	if p.VNetHdr != s.VNetHdr || !bytes.Equal(p.Payload(), s.Payload()) || !sameOffload(p, s) {
		return false
	}
	if p.L4OK && !p.Fragment && p.Proto != packet.ProtoTCP {
		return true
	}
	a, b := p.Packet.Frame, s.Packet.Frame
	if p.L4-p.L3 != s.L4-s.L3 || !bytes.Equal(a[:12], b[:12]) {
		return false
	}
	h, g := a[p.L3:p.L4], b[s.L3:s.L4]
	if p.Kind == packet.IP4 {
		// Not compared: class, identification, time to live, checksum.
		return h[0] == g[0] && bytes.Equal(h[2:4], g[2:4]) && bytes.Equal(h[6:8], g[6:8]) && bytes.Equal(h[20:], g[20:])
	}
	// Not compared: class, flow label, hop limit; nor a fragment's
	// identification.
	if p.Ident != s.Ident || !bytes.Equal(h[4:7], g[4:7]) {
		return false
	}
	from := packet.IPv6Len
	if p.Ident > 0 {
		at := p.Ident - p.L3
		if !bytes.Equal(h[from:at], g[from:at]) {
			return false
		}
		from = at + 4
	}
	return bytes.Equal(h[from:], g[from:])
}
