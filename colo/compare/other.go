package compare

import (
	"bytes"

	"github.com/gocolo/lockstep/internal/packet"
)

// What is no TCP segment is compared packet by packet. A packet of one side
// matches the oldest of the other that equals it.

func (e *Engine) primaryOther(c *conn, p *pkt) {
	if !c.blind {
		for i, s := range c.s.all() {
			if same(p, s) {
				e.pool.put(c.s.remove(i))
				e.release(p, &e.stats.Matched)
				e.recovered(c)
				return
			}
		}
		if c.s.len() > 0 {
			e.diverge(c, ReasonPacket)
		}
	}
	c.p.push(e.pool.copy(p))
}

func (e *Engine) secondaryOther(c *conn, s *pkt) {
	if !c.blind {
		for i, p := range c.p.all() {
			if same(p, s) {
				c.p.remove(i)
				e.release(p, &e.stats.Matched)
				e.recovered(c)
				return
			}
		}
		if c.p.len() > 0 {
			e.diverge(c, ReasonPacket)
		}
	}
	c.s.push(e.pool.copy(s))
}

func (e *Engine) recovered(c *conn) {
	if c.diverged && c.p.len() == 0 && c.s.len() == 0 {
		c.diverged = false
		e.stats.Recovered++
	}
}

// same compares two packets of one flow. A virtio-net header is not compared,
// but its length is: it says what the guest's driver has agreed upon.
func same(p, s *pkt) bool {
	if p.VNetHdr != s.VNetHdr || !bytes.Equal(p.Payload(), s.Payload()) {
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
		// Not: class, identification, time to live, checksum.
		return h[0] == g[0] && bytes.Equal(h[2:4], g[2:4]) && bytes.Equal(h[6:8], g[6:8]) && bytes.Equal(h[20:], g[20:])
	}
	// Not: class, flow label, hop limit; nor a fragment's identification, which
	// ends the headers.
	n := len(h)
	if p.Fragment {
		n -= 4
	}
	return bytes.Equal(h[4:7], g[4:7]) && bytes.Equal(h[packet.IPv6Len:n], g[packet.IPv6Len:n])
}
