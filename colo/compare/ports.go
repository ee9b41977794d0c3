package compare

import "github.com/gocolo/lockstep/internal/packet"

// A guest that asks something of the world chooses a port for it at random. Guests that
// choose differently have two flows between the same addresses, to the same port, and the
// packets of neither flow will ever match. That is noticed when both flows are there.

// A side is one of the guests, or none.
type side uint8

const (
	neither side = iota
	primary
	secondary
)

// A loners has the flows to one port on which only one of the guests has sent anything: p
// is a flow of the primary's, s of the secondary's.
type loners struct{ p, s *conn }

// port returns k without the port that the guest chose.
func (k connKey) port() connKey {
	k.Ports &= 0xffff
	return k
}

// asks reports whether p may begin a flow on which the guest asks something: a connection
// that it opens, or datagrams.
func asks(p *pkt) bool {
	return p.segment.is && p.flags&(packet.SYN|packet.ACK) == packet.SYN ||
		!p.segment.is && p.Proto == packet.ProtoUDP && p.L4OK
}

// enlist takes a new connection into the engine's loners, if it may be one.
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

// unlist takes a connection out of them, because both guests have sent something or it
// ends.
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
