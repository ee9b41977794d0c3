package filter

import "github.com/gocolo/lockstep/internal/packet"

// parts translates what the packet has of a segment that is not whole, and returns its frame: the
// beginning of one in fragments, or of one that an ICMP error quotes.
func (r *Rewriter) parts(frame []byte, vnetHdr int, inward bool) []byte {
	var q packet.Quoted
	switch {
	case r.strict != nil, len(r.conns) == 0:
		return frame
	case r.pkt.HeadKey(&q.Key):
		c := r.conns[ofGuest(q.Key, !inward)]
		if c != nil && c.known() && c.translation() != (translation{}) && translatesHead(&r.pkt) {
			frame = r.writable(frame, vnetHdr)
			c.translation().head(&r.pkt, packet.VNetOf(frame, vnetHdr), &c.life, inward)
			r.stats.Rewritten++
		}
		return frame
	case !r.pkt.Quoted(&q):
		return frame
	}
	if c := r.conns[ofGuest(q.Key, inward)]; c != nil && c.known() && c.translation() != (translation{}) {
		frame = r.writable(frame, vnetHdr)
		c.translation().quoted(&r.pkt, &q, inward)
		r.stats.Rewritten++
	}
	return frame
}

// head changes the header of a segment in the first of its fragments, as inward or outward does. l
// is how far the connection has come.
func (t translation) head(p *packet.Packet, v packet.VNet, l *life, inward bool) {
	h := p.TCP()
	was := headSum(h)
	if inward {
		t.inward(h)
		l.past(h)
	} else {
		t.outward(h)
	}
	seal(p, v, was)
}

// translatesHead reports whether head is for the packet, of whose segment HeadKey has found the
// flow. What opens a connection, or ends it by a RST, comes whole.
func translatesHead(p *packet.Packet) bool {
	return p.TCP().Flags()&(packet.SYN|packet.RST) == 0 && !p.Signed()
}
