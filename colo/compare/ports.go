package compare

import (
	"bytes"

	"github.com/gocolo/lockstep/internal/packet"
)

// A guest that asks something of the world chooses a port for it at random. Guests that
// choose differently have two flows between the same addresses, to the same port, and the
// packets of neither flow will ever match.
//
// Guests that send to that port from several ports, and not at the same moment, look like
// that for a while: one has begun its first flow and the other its second. So two
// connections that the guests open from different ports differ at once, and so do two
// flows of datagrams that ask the same. For all other flows the engine waits for
// Config.Cross whether the other guest begins them too, as it waits for datagrams of one
// flow that may come in another order.
//
// A guest makes itself temporary addresses at random too (RFC 8981), and may open a
// connection from one. So flows of IPv6 count as flows from two ports where they are from two
// addresses of one prefix; so do two addresses of one prefix that the guests ask for, whether
// anybody has them.

// A side is one of the guests, or none.
type side uint8

const (
	neither side = iota
	primary
	secondary
)

// A lone has the newest flows to one port that only one of the guests has begun, oldest
// first. Behind the last one there is nil. Of TCP it has one.
type lone [crossMax]*conn

// A loners has the flows to one port, or the claims of one hardware address, on which only one of
// the guests has sent anything: p has those of the primary, s those of the secondary. It changes
// when the other guest begins one of them too, or one ends; a mark empties it.
type loners struct{ p, s lone }

// of returns the flows of one side, and those of the other.
func (l *loners) of(s side) (mine, others *lone) {
	if s == primary {
		return &l.p, &l.s
	}
	return &l.s, &l.p
}

// add adds a flow behind the others. If there are max already, the oldest is forgotten.
func (l *lone) add(c *conn, max int) {
	n := 0
	for n < max && l[n] != nil {
		n++
	}
	if n == max {
		n--
		copy(l[:n], l[1:max])
	}
	l[n] = c
}

func (l *lone) remove(c *conn) {
	for i, d := range l {
		if d == c {
			copy(l[i:], l[i+1:])
			l[len(l)-1] = nil
			return
		}
	}
}

func (l *lone) full() bool { return l[len(l)-1] != nil }

// port returns k without the port that the guest chose, and without the part of its address of
// IPv6 that it chooses (RFC 4862 section 5.5.3: 64 bits).
func (k connKey) port() connKey {
	k.Ports &= 0xffff
	if k.Kind == packet.IP6 {
		clear(k.Src[8:])
	}
	return k
}

// asks reports whether p may begin a flow on which the guest asks something: a connection
// that it opens, datagrams, echos, or a claim of an address of IPv6.
func asks(p *pkt) bool {
	if p.segment.is {
		return p.flags&(packet.SYN|packet.ACK) == packet.SYN
	}
	switch p.Proto {
	case packet.ProtoUDP:
		return p.L4OK
	case packet.ProtoICMPv6:
		const echo = 128
		switch m := p.Payload(); m[0] {
		case echo:
			return true
		case ndNeighborSolicitation:
			return [16]byte(p.IPv6().Src()) == [16]byte{} // whether anybody has an address
		}
	case packet.ProtoSCTP, packet.ProtoDCCP, packet.ProtoUDPLite:
		return true
	}
	return false
}

// enlist takes a new flow of segments or datagrams into the engine's loners, if it may be
// one. One that is set apart is not compared, by its port neither.
func (e *Engine) enlist(c *conn) {
	p := &e.in
	if c.apart || !asks(p) {
		return
	}
	c.loner = e.speaks
	k := c.key.port()
	l := e.loners[k]
	mine, others := l.of(c.loner)
	most := len(mine)
	if c.key.kind == kindSegment {
		most = 1
	}
	many := mine.full() && others.full()
	mine.add(c, most)
	e.loners[k] = l
	switch {
	case others[0] == nil:
	case c.key.kind == kindSegment, many, others.ask(p):
		e.diverge(c, ReasonPorts)
	default:
		c.crossed = e.now
		e.crossing = append(e.crossing, c)
		e.sooner(e.now.Add(e.cfg.Cross))
	}
}

// unlist takes a connection out of the engine's loners, because both guests have sent
// something or it ends.
func (e *Engine) unlist(c *conn) {
	if c.loner == neither {
		return
	}
	e.uncross(c)
	k := c.key.port()
	l := e.loners[k]
	mine, _ := l.of(c.loner)
	mine.remove(c)
	c.loner = neither
	if l == (loners{}) {
		delete(e.loners, k)
	} else {
		e.loners[k] = l
	}
}

// parted reports whether there is, besides c, which has been a loner for as long as
// Config.Cross, a loner of the other guest that has been one for as long. since is when c
// became one. A younger one is asked about c when its own time is over.
func (e *Engine) parted(c *conn, since instant) bool {
	l := e.loners[c.key.port()]
	_, others := l.of(c.loner)
	for _, o := range others {
		if o == nil {
			break
		}
		if o.crossed.IsZero() || !since.Before(o.crossed) {
			return true
		}
	}
	return false
}

// ask reports whether one of the flows of l began with the same question as p, a
// datagram.
func (l *lone) ask(p *pkt) bool {
	for _, c := range l {
		if c == nil {
			break
		}
		q := &c.p
		if c.loner == secondary {
			q = &c.s
		}
		if q.len() > 0 && sameQuestion(p, q.at(0)) {
			return true
		}
	}
	return false
}

const (
	dnsPort = 53
	dnsID   = 2  // the length of the identifier in front of a message
	dnsLen  = 12 // the length of the header of a DNS message
)

// sameQuestion reports whether two datagrams to one port say the same. Of a query to a DNS
// server the identifier and the case of letters are chosen at random too (RFC 5452, and
// draft-vixie-dnsext-dns0x20).
func sameQuestion(p, q *pkt) bool {
	a, ok := p.Body()
	b, also := q.Body()
	if !ok || !also || len(a) != len(b) {
		return false
	}
	if p.UDP().DstPort() != dnsPort || len(a) < dnsLen {
		return bytes.Equal(a, b)
	}
	for i := dnsID; i < len(a); i++ {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}
