package compare

import "github.com/gocolo/lockstep/internal/packet"

// Refuses reports whether a packet that is on its way to the guests is an answer to a SYN that the
// primary's guest does not take, since it acknowledges what that guest has not sent: a SYN|ACK, or
// a RST where the guest has had no answer yet. Anybody who knows the addresses and ports can send
// one. A host that mirrors input keeps it from the secondary's guest. The peer does not know the
// number of that guest, so that a filter.Rewriter takes what an answer acknowledges for the number
// of the primary's guest. p begins with a virtio-net header of hdrLen bytes.
func (c *Comparer) Refuses(p []byte, hdrLen int) bool {
	f := Frame{p, hdrLen}
	if !f.fits() || len(p) > maxFrame || !mayHave(p[hdrLen:], packet.SYN|packet.RST) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.refuses(f)
}

// refuses does what Refuses of a Comparer does, for a frame that has its virtio-net header and is
// not too long.
func (e *Engine) refuses(f Frame) bool {
	p := &e.inbound
	if e.strict != nil {
		return false
	}
	if p.Parse(f.Data[f.VNetHdr:]); !p.IsTCP() || p.Routed {
		return false
	}
	h := p.TCP()
	flags := h.Flags() & (packet.SYN | packet.RST)
	if flags == 0 || h.Flags()&packet.ACK == 0 {
		return false
	}
	k := &e.key // which lies there already
	p.Key(&k.Key)
	k.Key, k.kind = k.Reverse(), kindSegment
	c := e.conns.find(e.conns.hash(k), k)
	if c == nil {
		return false
	}
	t := &c.tcp.told
	if !t.open || !t.data || flags != packet.SYN && t.acks {
		return false
	}
	return h.Ack()-(t.isn+1) > t.end-(t.isn+1) // the data of a SYN may have been taken (RFC 7413)
}
