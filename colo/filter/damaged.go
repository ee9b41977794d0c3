package filter

import "github.com/gocolo/lockstep/internal/packet"

// damaged reports whether the guest drops the segment that p is, because its checksum is wrong.
// That is not known, and so taken for no, where the virtio-net header says that the guest need
// not look at it, where there is none but a zero, and where extensions of IPv6 may put another
// address into the pseudo-header (RFC 8200 section 8.1, RFC 6275 section 11.3.1). All of the
// segment is read: it is asked only of one that would change what is known of a connection.
func damaged(p *packet.Packet, v packet.VNet) bool {
	sum := p.TCP().Checksum()
	switch {
	case v != nil && v.Flags()&(packet.VNetNeedsCsum|packet.VNetDataValid) != 0:
		return false
	case sum == 0, p.Kind == packet.IP6 && p.L4 != p.L3+packet.IPv6Len:
		return false
	}
	want := p.TCPChecksum()
	return sum != want && (sum != 0xffff || want != 0)
}

// teaches reports whether a segment for the guest may change what is known of c, or of a
// connection that is not followed yet where c is nil.
func (c *conversation) teaches(h packet.TCP) bool {
	return h.Flags()&(packet.SYN|packet.RST) != 0 || c != nil && (!c.peerKnown || c.ends(h))
}

// ends reports whether a segment for the guest may bring the end of the connection nearer.
func (c *life) ends(h packet.TCP) bool {
	return h.Flags()&packet.FIN != 0 && !c.clientAcked || c.guestFIN && !c.guestAcked
}
