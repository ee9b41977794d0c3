package filter

import "github.com/gocolo/lockstep/internal/packet"

// teaches reports whether a segment for the guest may change what is known of c, or of a
// connection that is not followed yet where c is nil.
func (c *conversation) teaches(h packet.TCP) bool {
	return h.Flags()&(packet.SYN|packet.RST) != 0 || c != nil && (!c.peerKnown || c.ends(h))
}

// ends reports whether a segment for the guest may bring the end of the connection nearer.
func (c *life) ends(h packet.TCP) bool {
	return h.Flags()&packet.FIN != 0 && !c.clientAcked || c.guestFIN && !c.guestAcked
}
