package proxy_test

import (
	"fmt"
	"maps"

	"github.com/gocolo/lockstep/internal/packet"
)

// What a frame of an ordeal is, in the identification of its header.
const (
	markGood     = 1 // it has a right checksum, and its offloads are in order
	markDamaged  = 2 // its checksum is wrong, on purpose
	markOdd      = 3 // a device can make nothing of its virtio-net header
	markStranger = 4 // it is in order, and of nobody who has a connection
)

// An ordealGuest is the memory of a guest: a server which answers each byte of a client with three of its
// own. What it says depends on what it was told alone, but for its initial numbers, its clock, and how it cuts
// what it sends.
type ordealGuest struct {
	seed  uint32
	clock uint32
	way   ordealWay // what it agrees upon in a SYN
	conns map[uint16]ordealConn
	inbox [][]byte // packets that its NIC has taken, as they are on a wire
}

func (g *ordealGuest) clone() *ordealGuest {
	c := *g
	c.conns, c.inbox = maps.Clone(g.conns), append([][]byte(nil), g.inbox...)
	return &c
}

// An ordealConn is a connection of the server's. Places in a stream count from its SYN, which is 0.
type ordealConn struct {
	life, isn uint32 // the initial numbers of the client and of the server
	rcv       uint32 // the place that is expected next
	una, snd  uint32
	said      uint32 // the greatest place that was acknowledged
	open      bool
	dialed    bool // the guest has opened it; life is 0 until the client has answered
	fin, cfin bool // the server, and the client, have ended
	recent    uint32
	owes      bool // an acknowledgment
	way       ordealWay
}

// ordealBack is how far the port to which a guest opens a connection is from that which has asked for it.
const ordealBack = 1000

const ordealWindow, ordealScale = 16000, 2

// byteOf returns a byte of a stream.
func byteOf(life uint32, server bool, at uint32) byte {
	b := byte(at*7 ^ at>>6 ^ life>>9)
	if server {
		b = ^b * 3
	}
	return b
}

func streamOf(life uint32, server bool, from, to uint32) []byte {
	b := make([]byte, 0, to-from)
	for ; from < to; from++ {
		b = append(b, byteOf(life, server, from))
	}
	return b
}

// limit returns the end of what the server has to say so far.
func (c *ordealConn) limit() uint32 {
	got := c.rcv - 1
	if c.cfin {
		got--
	}
	return 1 + 3*got
}

// An ordealSegment is a segment to or from a guest, whose client has the port.
type ordealSegment struct {
	port        uint16
	seq, ack    uint32
	flags       byte
	stamp, echo uint32
	data        []byte
	way         ordealWay // of a SYN
	win         uint16    // as it came
}

func (g *ordealGuest) say(port uint16, c *ordealConn, flags byte, at uint32, data []byte) ordealSegment {
	if flags&packet.ACK != 0 && flags&packet.RST == 0 {
		c.said, c.owes = max(c.said, c.rcv), false
	}
	ack := c.life + c.rcv
	if flags&packet.ACK == 0 {
		ack = 0
	}
	s := ordealSegment{port, c.isn + at, ack, flags, g.clock, c.recent, data, c.way, ordealWindow}
	if !c.way.stamps {
		s.stamp, s.echo = 0, 0
	}
	return s
}

// take has the server take a segment, and returns its answers. legit says that it is one of a client's own.
func (g *ordealGuest) take(s ordealSegment, legit bool) (out []ordealSegment, wrong string) {
	c, ok := g.conns[s.port]
	defer func() {
		if ok {
			g.conns[s.port] = c
		}
	}()
	switch {
	case s.flags&packet.RST != 0:
		if ok && s.seq == c.life+c.rcv {
			if legit {
				return nil, "a client resets its connection"
			}
			delete(g.conns, s.port)
			ok = false
		}
		return nil, ""
	case ok && c.dialed && !c.open:
		switch {
		case s.flags&(packet.SYN|packet.ACK) != packet.SYN|packet.ACK:
		case s.ack == c.isn+1:
			c.life, c.rcv, c.una, c.open, c.recent, c.owes = s.seq, 1, 1, true, s.stamp, true
		case legit:
			return nil, fmt.Sprintf("a SYN|ACK acknowledges %d, and not %d", s.ack, c.isn+1)
		default:
			return []ordealSegment{{port: s.port, seq: s.ack, flags: packet.RST, stamp: g.clock}}, ""
		}
		return nil, ""
	case s.flags&packet.SYN != 0 && s.flags&packet.ACK == 0:
		switch {
		case ok && c.dialed:
			return []ordealSegment{g.say(s.port, &c, packet.ACK, c.snd, nil)}, ""
		case !ok || c.fin && c.cfin && c.una == c.snd:
			ok = true
			c = ordealConn{life: s.seq, isn: (g.seed + uint32(s.port)*0x9e3779b9 + s.seq) * 2654435761, rcv: 1, snd: 1, recent: s.stamp, way: g.way}
			out = []ordealSegment{g.say(s.port, &c, packet.SYN|packet.ACK, 0, nil)}
			if back, known := g.conns[s.port+ordealBack]; s.port < 41000 && !known {
				back = ordealConn{isn: c.isn ^ s.seq, rcv: 0, snd: 1, dialed: true, way: g.way}
				out = append(out, g.say(s.port+ordealBack, &back, packet.SYN, 0, nil))
				g.conns[s.port+ordealBack] = back
			}
			return out, ""
		case c.life == s.seq && !c.open:
			return []ordealSegment{g.say(s.port, &c, packet.SYN|packet.ACK, 0, nil)}, ""
		}
		return []ordealSegment{g.say(s.port, &c, packet.ACK, c.snd, nil)}, ""
	case !ok:
		if legit {
			return nil, "a guest does not know the connection of a client"
		}
		return []ordealSegment{{port: s.port, seq: s.ack, flags: packet.RST, stamp: g.clock}}, ""
	case s.flags&packet.ACK == 0:
		return nil, ""
	}
	at, n := s.seq-c.life, uint32(len(s.data))
	if int32(at-c.rcv) > ordealWindow<<ordealScale || int32(at+n-c.rcv) < 0 || s.flags&packet.SYN != 0 {
		return []ordealSegment{g.say(s.port, &c, packet.ACK, c.snd, nil)}, ""
	}
	a := s.ack - c.isn
	if a > c.snd || !c.open && a != 1 {
		if legit {
			return nil, fmt.Sprintf("%d is acknowledged of %d (open %v)", a, c.snd, c.open)
		}
		return []ordealSegment{g.say(s.port, &c, packet.ACK, c.snd, nil)}, ""
	}
	c.open = true
	c.una = max(c.una, a)
	if s.stamp != 0 && int32(s.stamp-c.recent) >= 0 {
		c.recent = s.stamp
	}
	for i, b := range s.data {
		if b != byteOf(c.life, false, at+uint32(i)) {
			return nil, fmt.Sprintf("byte %d of a client is not what it said", at+uint32(i))
		}
	}
	c.owes = c.owes || n > 0 || at != c.rcv || s.flags&packet.FIN != 0
	if at <= c.rcv && at+n >= c.rcv && !c.cfin {
		c.rcv = at + n
		if s.flags&packet.FIN != 0 {
			c.rcv++
			c.cfin = true
		}
	}
	return nil, ""
}

// speak has the server say something on a connection: data, its end, an acknowledgment that it owes, or what
// was not acknowledged once more.
func (g *ordealGuest) speak(port uint16, size, what int) (out []ordealSegment) {
	c, ok := g.conns[port]
	if !ok {
		return nil
	}
	defer func() { g.conns[port] = c }()
	switch {
	case !c.open && c.dialed:
		if what == 0 {
			return []ordealSegment{g.say(port, &c, packet.SYN, 0, nil)}
		}
	case !c.open:
		if what == 0 {
			return []ordealSegment{g.say(port, &c, packet.SYN|packet.ACK, 0, nil)}
		}
	case what == 0: // again
		to := min(c.una+uint32(size), c.snd)
		if c.fin {
			to = min(to, c.snd-1)
		}
		switch {
		case c.una < to:
			return []ordealSegment{g.say(port, &c, push, c.una, streamOf(c.life, true, c.una, to))}
		case c.fin && c.una < c.snd:
			return []ordealSegment{g.say(port, &c, push|packet.FIN, c.snd-1, nil)}
		}
	case c.snd < c.limit() && !c.fin && c.snd-c.una < 30000:
		from := c.snd
		c.snd = min(c.snd+uint32(size), c.limit())
		return []ordealSegment{g.say(port, &c, push, from, streamOf(c.life, true, from, c.snd))}
	case c.cfin && !c.fin && c.snd == c.limit():
		c.fin = true
		c.snd++
		return []ordealSegment{g.say(port, &c, push|packet.FIN, c.snd-1, nil)}
	case c.owes:
		return []ordealSegment{g.say(port, &c, packet.ACK, c.snd, nil)}
	}
	return nil
}

// An ordealClient is the other end of a connection. It knows the numbers that it was told.
type ordealClient struct {
	port            uint16
	life, isn       uint32 // its own initial number, and that of the server
	una, snd, rcv   uint32
	total           uint32 // the end of what it has to say
	stamp, recent   uint32
	fin, sfin, asks bool // it has ended, the server has; it has sent a SYN
	back            bool // the server opens it
	plain           bool // its segments have no timestamps
	scale           byte // of the window that the server offers
	gone            bool // there is no such client any more
	lives           int
	saw             bool // the server's answer had come at the last mark
	frail           bool // its handshake was not complete when its host was protected anew, and no checkpoint has come since it is
}

func (c *ordealClient) say(flags byte, at uint32, data []byte) ordealSegment {
	ack := c.isn + c.rcv
	if flags&packet.ACK == 0 {
		ack = 0
	}
	s := ordealSegment{c.port, c.life + at, ack, flags, c.stamp, c.recent, data, usualWay, ordealWindow}
	if c.plain {
		s.stamp, s.echo, s.way.stamps = 0, 0, false
	}
	return s
}

// over reports whether all is said and acknowledged.
func (c *ordealClient) over() bool { return c.gone || c.fin && c.sfin && c.una == c.snd }

// take has the client take a segment of the server's. It may answer with a RST.
func (c *ordealClient) take(s ordealSegment) (rst *ordealSegment, wrong string) {
	if c.gone {
		return nil, ""
	}
	if c.back && s.flags&(packet.SYN|packet.ACK) == packet.SYN {
		if !c.asks { // else it answers again, as it does anyway
			c.asks, c.isn, c.rcv, c.snd, c.recent, c.plain, c.scale = true, s.seq, 1, 1, s.stamp, !s.way.stamps, s.way.shift()
		}
		return nil, ""
	}
	if c.asks && c.rcv == 0 && s.flags&(packet.ACK|packet.RST) == packet.ACK && s.ack-c.life != 1 {
		// A server has not heard yet that the connection before is over (RFC 9293 section 3.10.7.3).
		return &ordealSegment{port: c.port, seq: s.ack, flags: packet.RST}, ""
	}
	return nil, c.takes(s)
}

func (c *ordealClient) takes(s ordealSegment) (wrong string) {
	a, at, n := s.ack-c.life, s.seq-c.isn, uint32(len(s.data))
	switch {
	case !c.asks || s.flags&packet.ACK != 0 && a > 1<<24:
		return "" // of the connection before
	case s.flags&packet.RST != 0:
		if c.rcv > 0 && at == c.rcv && !c.over() {
			return "the connection is reset"
		}
		return ""
	case s.flags&packet.ACK == 0, a > c.snd:
		return fmt.Sprintf("%d is acknowledged of %d", a, c.snd)
	case s.flags&packet.SYN != 0:
		if c.rcv == 0 {
			c.isn, c.rcv, c.una, c.recent, c.plain, c.scale = s.seq, 1, 1, s.stamp, !s.way.stamps, s.way.shift()
		}
		// Where the host of the primary has died, the answer of the other guest may come after that
		// of the primary's. A client that has a connection takes no other number (RFC 5961 section 4).
		return ""
	case c.rcv == 0:
		return ""
	case int32(s.stamp-c.recent) < 0, c.plain != (s.stamp == 0):
		return "" // PAWS; and who has agreed on timestamps takes nothing without (RFC 7323 section 3.2)
	case int32(at+n-c.rcv) < -1<<16 || int32(at-c.rcv) > 1<<20:
		// Not acceptable. A guest whose handshake is not complete answers a stranger with a number that nobody translates yet.
		return ""
	}
	c.una = max(c.una, a)
	for i, b := range s.data {
		if b != byteOf(c.life, true, at+uint32(i)) {
			return fmt.Sprintf("byte %d of the server is not what it said", at+uint32(i))
		}
	}
	if int32(at-c.rcv) <= 0 && int32(at+n-c.rcv) >= 0 {
		if at+n > c.rcv || s.flags&packet.FIN != 0 {
			c.recent = s.stamp
		}
		c.rcv = at + n
		if s.flags&packet.FIN != 0 {
			c.rcv++
			c.sfin = true
		}
	}
	return ""
}

// speak has the client say something: something new, or what was not acknowledged once more.
func (c *ordealClient) speak(size uint32, again bool) ordealSegment {
	switch {
	case c.back && c.una == 0:
		return c.say(packet.SYN|packet.ACK, 0, nil)
	case !c.asks, c.rcv == 0:
		c.asks, c.snd = true, 1
		return c.say(packet.SYN, 0, nil)
	case again && c.una < c.snd:
		to := min(c.una+size, c.snd)
		if c.fin {
			to = min(to, c.snd-1)
		}
		if c.una < to {
			return c.say(push, c.una, streamOf(c.life, false, c.una, to))
		}
		return c.say(push|packet.FIN, c.snd-1, nil)
	case c.snd < c.total && c.snd-c.una < 20000:
		from := c.snd
		c.snd = min(c.snd+size, c.total)
		return c.say(push, from, streamOf(c.life, false, from, c.snd))
	case c.snd == c.total && !c.fin && c.rcv == 1+3*(c.total-1):
		c.fin = true
		c.snd++
		return c.say(push|packet.FIN, c.snd-1, nil)
	}
	return c.say(packet.ACK, c.snd, nil)
}

// mine reports whether a segment of the server's is of the connection that c has now.
func (c *ordealClient) mine(s ordealSegment) bool {
	return c.asks && s.flags&packet.ACK != 0 && s.ack-c.life < 1<<24
}
