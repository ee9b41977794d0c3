package compare_test

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/packet"
)

// A span is a stretch of a stream, counted from the number of its SYN: its first byte is 1.
type span struct{ from, to uint32 }

// spans are stretches that do not touch, in ascending order.
type spans []span

// with returns s and all of x.
func (s spans) with(x span) (out spans) {
	if x.from >= x.to {
		return s
	}
	for i, y := range s {
		switch {
		case y.to < x.from:
			out = append(out, y)
		case x.to < y.from:
			return append(append(out, x), s[i:]...)
		default:
			x = span{min(x.from, y.from), max(x.to, y.to)}
		}
	}
	return append(out, x)
}

// has reports whether all of x is in s.
func (s spans) has(x span) bool {
	for _, y := range s {
		if y.from <= x.from && x.to <= y.to {
			return true
		}
	}
	return x.from >= x.to
}

// A truthLife is one of the connections that follow each other between the same two ports.
type truthLife struct {
	nth          int
	guest        uint32 // the number of the SYN of the primary's guest
	client       uint32 // that of the client
	scale        uint8
	times, sacks bool
	dialed       bool // the guest opens it
	refused      bool // the guests refuse it

	// What both guests have to say, and when they come to it is their own affair.
	limit uint32 // the end of the data so far
	ends  bool   // a FIN follows that
}

func (l *truthLife) text(from, to uint32) string {
	b := make([]byte, 0, to-from)
	for ; from < to; from++ {
		b = append(b, byte('a'+(from*7+from/26+uint32(l.nth))%26))
	}
	return string(b)
}

// A truthSegment is what a client sends, by the numbers of the two SYNs.
type truthSegment struct {
	life               *truthLife
	seq, n, ack        uint32
	syn, fin, ackd     bool
	stamp, echo, limit uint32 // limit: the end of the client's window
}

// A truthGuest receives what a client sends, as RFC 9293, 2018, 2883 and 7323 have it, and tells
// the truth about it.
type truthGuest struct {
	inbox []truthSegment
	life  *truthLife // nil: it has no connection
	open  bool       // it has had an answer to its SYN
	rcv   uint32     // the next byte that it lacks
	held  spans      // beyond rcv
	last  span       // the stretch of these that came last
	again span       // what came twice; empty: nothing has, since the last acknowledgment
	edge  uint32     // of its window; it is never taken back
	used  uint32     // bytes that its application has not read
	room  uint32     // for so many
	owes  bool       // an acknowledgment
	acked uint32     // the last acknowledgment that it has given

	snd, una uint32 // what it has said, and what of that the client has
	top      uint32 // the end of the client's window
	fin      bool   // it has sent one
	clock    uint32
	echo     uint32
	syn      uint32 // the number of its SYN
	reset    bool   // it has reset its last connection
}

func (g truthGuest) clone() truthGuest {
	g.inbox = append([]truthSegment(nil), g.inbox...)
	g.held = append(spans(nil), g.held...)
	return g
}

// segment returns a segment of the guest.
func (g *truthGuest) segment(flags byte, seq uint32, data string) []byte {
	l := g.life
	opts := ""
	number, ack := l.guest+seq, l.client+g.rcv
	win := uint32(0)
	switch {
	case flags&packet.SYN != 0:
		number = g.syn
		opts = wireMSS + "\x01\x03\x03" + string(rune(l.scale))
		if l.sacks {
			opts += wireSACKOK
		}
		win = g.room
		g.edge = max(g.edge, g.rcv+win)
	default:
		unit := uint32(1) << l.scale
		units := uint32(0)
		if want := g.rcv + g.room; want > g.rcv+g.used {
			units = (g.room - g.used) >> l.scale
		}
		if g.rcv+units*unit < g.edge {
			units = (g.edge - g.rcv + unit - 1) >> l.scale
		}
		g.edge = g.rcv + units*unit
		win = units
	}
	if flags&packet.ACK == 0 {
		ack = 0
	}
	if l.times {
		opts += wireTimes(g.clock, g.echo)
	}
	if l.sacks && flags&(packet.ACK|packet.SYN|packet.RST) == packet.ACK {
		opts += g.blocks()
	}
	f := wireSegment(9, number, ack, flags, opts, data)
	binary.BigEndian.PutUint16(f[34+14:], uint16(win))
	if flags&packet.ACK != 0 {
		g.owes, g.acked = false, g.rcv
	}
	return sealed(f)
}

// blocks returns an option of selective acknowledgments, the newest first.
func (g *truthGuest) blocks() string {
	var all []span
	if g.again.to > g.again.from {
		all = append(all, g.again)
		for _, s := range g.held {
			if s.from <= g.again.from && g.again.to <= s.to {
				all = append(all, s)
			}
		}
	}
	g.again = span{}
	for _, s := range g.held {
		if s.from <= g.last.from && g.last.to <= s.to && (len(all) < 2 || all[1] != s) {
			all = append(all, s)
		}
	}
	for _, s := range g.held {
		known := false
		for _, x := range all {
			known = known || x == s
		}
		if !known {
			all = append(all, s)
		}
	}
	if all = all[:min(len(all), 3)]; len(all) == 0 {
		return ""
	}
	b := []byte{packet.OptNop, packet.OptNop, packet.OptSACK, byte(2 + 8*len(all))}
	for _, s := range all {
		b = binary.BigEndian.AppendUint32(b, g.life.client+s.from)
		b = binary.BigEndian.AppendUint32(b, g.life.client+s.to)
	}
	return string(b)
}

func (g *truthGuest) ack() []byte { return g.segment(packet.ACK, g.snd, "") }

// accepts begins a connection by a client's SYN, with a number of the guest's own.
func (g *truthGuest) accepts(l *truthLife, syn, room uint32) {
	*g = truthGuest{inbox: g.inbox, life: l, room: room, rcv: 1, snd: 1, una: 1, syn: syn, clock: g.clock}
	if l.dialed {
		g.rcv = 0
	}
}

// take takes a segment of the client, and returns what the guest says at once. lazy says that it
// may let an acknowledgment wait.
func (g *truthGuest) take(s truthSegment, own func(l *truthLife) (syn, room uint32), lazy bool) (f []byte) {
	switch {
	case s.syn && !s.ackd && (g.life == nil || g.life.nth < s.life.nth):
		if s.life.refused {
			g.life, g.reset = nil, true
			return sealed(wireSegment(9, 0, s.life.client+1, packet.RST|packet.ACK, "", ""))
		}
		syn, room := own(s.life)
		g.accepts(s.life, syn, room)
		g.echo = s.stamp
		return g.segment(packet.SYN|packet.ACK, 0, "")
	case g.life != s.life || g.reset:
		return nil
	case s.syn && s.ackd && !g.open:
		g.open, g.rcv, g.echo, g.una, g.top = true, 1, s.stamp, 1, s.limit
		g.edge = max(g.edge, 1+g.room)
		return g.ack()
	case s.syn && !g.open && !g.life.dialed:
		return g.segment(packet.SYN|packet.ACK, 0, "")
	case s.syn:
		return g.ack()
	case !g.open && g.life.dialed:
		return nil
	}
	g.open = true
	if s.ackd && s.ack <= g.snd {
		g.una, g.top = max(g.una, s.ack), max(g.top, s.limit)
	}
	if s.stamp > 0 && int32(s.stamp-g.echo) > 0 && s.seq <= g.acked {
		g.echo = s.stamp
	}
	x := span{s.seq, s.seq + s.n}
	if s.fin {
		x.to++
	}
	switch {
	case x.to <= g.rcv && (s.n > 0 || s.fin):
		g.again = x
	case x.to > g.edge && x.to > x.from:
	case x.from == x.to && s.seq >= g.rcv:
		return nil
	case x.from == x.to: // it asks for a sign of life
	case x.from <= g.rcv:
		fills := len(g.held) > 0
		if x.from < g.rcv {
			g.again = span{x.from, g.rcv}
		}
		was := g.rcv
		g.rcv = x.to
		for len(g.held) > 0 && g.held[0].from <= g.rcv {
			g.rcv = max(g.rcv, g.held[0].to)
			g.held = g.held[1:]
		}
		g.used += g.rcv - was
		if g.owes = true; !fills && lazy {
			return nil
		}
	default:
		if g.held.has(x) {
			g.again = x
		}
		g.last = x
		g.held = g.held.with(x)
	}
	return g.ack()
}

// says returns the next segment of data, nil if there is none for which the client has room.
func (g *truthGuest) says(size uint32) []byte {
	if g.life == nil || g.reset || !g.open || g.fin {
		return nil
	}
	to := min(g.life.limit, g.snd+size, g.top)
	flags := byte(packet.ACK)
	if to >= g.life.limit && g.life.ends {
		flags |= packet.FIN
	}
	if to <= g.snd && flags&packet.FIN == 0 {
		return nil
	}
	to = max(to, g.snd)
	f := g.segment(flags, g.snd, g.life.text(g.snd, to))
	if g.snd = to; flags&packet.FIN != 0 {
		g.snd, g.fin = to+1, true
	}
	return f
}

// repeats returns a segment in which the guest says again what the client lacks.
func (g *truthGuest) repeats(from, size uint32) []byte {
	if g.life == nil || g.reset || !g.open {
		return nil
	}
	end := g.snd
	if g.fin {
		end--
	}
	from = min(g.una+from, g.snd)
	to := min(from+size, end)
	flags := byte(packet.ACK)
	if g.fin && to >= end && g.una < g.snd {
		flags |= packet.FIN
	}
	if from >= to && flags&packet.FIN == 0 {
		return nil
	}
	to = max(to, from)
	if from > end {
		from, to = end, end
	}
	return g.segment(flags, from, g.life.text(from, to))
}

// resets ends the connection.
func (g *truthGuest) resets() []byte {
	if g.life == nil || g.reset {
		return nil
	}
	f := g.segment(packet.RST|packet.ACK, g.snd, "")
	g.reset = true
	return f
}
