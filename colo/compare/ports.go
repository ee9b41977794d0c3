package compare

import "github.com/gocolo/lockstep/internal/packet"

// A guest that asks something of the world chooses a port for it, at random. Two
// guests that choose differently have two flows between the same addresses to the
// same port, and neither will meet its twin: that is seen when both are there.

// A side is one of the guests, or none.
type side uint8

const (
	neither side = iota
	primary
	secondary
)

// loners are the flows to one port of which one guest only has sent anything.
type loners struct{ p, s *conn }

// port returns what flows have in common that differ in the guest's port only.
func (k connKey) port() connKey {
	k.Ports &= 0xffff
	return k
}

// asks reports whether a new flow may be one on which the guest asks: a connection
// that it opens, or datagrams.
func asks(p *pkt) bool {
	return p.segment.is && p.flags&(packet.SYN|packet.ACK) == packet.SYN ||
		!p.segment.is && p.Proto == packet.ProtoUDP && p.L4OK
}

// enlist is called for a new connection.
func (e *Engine) enlist(c *conn) {
	p := &e.in
	if k := c.key.kind; k != kindSegment && k != kindDatagram || !asks(p) {
		return
	}
	c.loner = e.speaks
	k := c.key.port()
	l := e.loners[k]
	mine, other := &l.p, &l.s
	if c.loner == secondary {
		mine, other = other, mine
	}
	*mine = c
	e.loners[k] = l
	if *other != nil {
		e.diverge(c, ReasonPorts)
	}
}

// unlist is called when both guests have sent something, or the connection goes.
func (e *Engine) unlist(c *conn) {
	if c.loner == neither {
		return
	}
	c.loner = neither
	k := c.key.port()
	l := e.loners[k]
	if l.p == c {
		l.p = nil
	}
	if l.s == c {
		l.s = nil
	}
	if l == (loners{}) {
		delete(e.loners, k)
	} else {
		e.loners[k] = l
	}
}
