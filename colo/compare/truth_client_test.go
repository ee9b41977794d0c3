package compare_test

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/packet"
)

// A testified is what a guest, which may go on if the primary dies, has said of one connection.
type testified struct {
	acks  bool
	ack   uint32 // the greatest acknowledgment
	held  spans  // of the client's stream, with what is before ack
	edge  uint32 // of its window
	snd   uint32 // the end of what it has said, or of where it would have gone on
	begun bool   // it has sent a SYN
	reset bool
}

func (k testified) clone() testified {
	k.held = append(spans(nil), k.held...)
	return k
}

// learns takes in a segment of the guest's. window says how much it offers.
func (k *testified) learns(s *truthFrame) {
	k.snd = max(k.snd, s.end)
	k.begun = k.begun || s.flags&packet.SYN != 0
	k.reset = k.reset || s.flags&packet.RST != 0
	if s.flags&packet.ACK == 0 {
		return
	}
	k.acks, k.ack, k.edge = true, max(k.ack, s.ack), max(k.edge, s.edge)
	k.held = k.held.with(span{0, s.ack})
	for _, b := range s.blocks {
		k.held = k.held.with(b)
	}
}

// A truthFrame is a segment of a guest, by the numbers of the two SYNs.
type truthFrame struct {
	flags         byte
	seq, end, ack uint32
	edge          uint32
	data          string
	blocks        []span
	stamp         uint32
}

// bare reports whether it is an acknowledgment and nothing else.
func (s *truthFrame) bare() bool { return s.flags&^packet.PSH == packet.ACK && s.data == "" }

// read returns what a frame of a guest says on l. Its number may be another in a SYN.
func (l *truthLife) read(f []byte) *truthFrame {
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	s := &truthFrame{flags: h.Flags(), seq: h.Seq() - l.guest, data: string(h.Payload())}
	if s.flags&packet.SYN != 0 {
		s.seq = 0
	}
	s.end = s.seq + uint32(len(s.data))
	if s.flags&(packet.SYN|packet.FIN) != 0 {
		s.end++
	}
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		switch kind {
		case packet.OptTimestamps:
			s.stamp = binary.BigEndian.Uint32(data)
		case packet.OptSACK:
			for ; len(data) >= 8; data = data[8:] {
				s.blocks = append(s.blocks, span{binary.BigEndian.Uint32(data) - l.client, binary.BigEndian.Uint32(data[4:]) - l.client})
			}
		}
	}
	if s.flags&packet.ACK != 0 {
		s.ack, s.edge = h.Ack()-l.client, h.Ack()-l.client
		if win := uint32(binary.BigEndian.Uint16(h[14:])); s.flags&packet.SYN != 0 {
			s.edge += win
		} else {
			s.edge += win << l.scale
		}
	}
	return s
}

// A truthClient is the other end of a connection. It believes what it is told.
type truthClient struct {
	life  *truthLife
	open  bool
	over  bool // it has got a RST
	ended bool // it has sent a FIN

	snd, una uint32
	sacked   spans
	blocks   []span // of the last acknowledgment
	edge     uint32 // of the guest's window
	wl1, wl2 uint32 // the segment that the window is from (RFC 9293 section 3.10.7.4)
	wl       bool

	rcv    uint32
	held   spans
	room   uint32
	stamp  uint32 // the newest timestamp that it has got
	clock  uint32
	stamps map[uint32]bool // what it has sent

	named      spans          // what it has been told that the guest holds
	top, right uint32         // the greatest acknowledgment number, and right edge, that it has seen, counted or not
	again      map[uint32]int // acknowledgments that say no more than those before them, by their numbers
}

// judge takes a frame that has left, and returns what is wrong with it.
func (c *truthClient) judge(s *truthFrame) (wrong string) {
	l := c.life
	switch {
	case s.flags&packet.RST != 0:
		switch {
		case s.flags&packet.ACK != 0 && s.ack > c.snd:
			return fmt.Sprintf("a RST acknowledges %d of %d", s.ack, c.snd)
		case !c.open && !l.dialed && (s.flags&packet.ACK == 0 || s.ack != 1):
			return fmt.Sprintf("a RST refuses a SYN, and acknowledges %d", s.ack)
		case !c.open || s.seq == c.rcv:
			c.over = true
		}
		return ""
	case s.flags&packet.ACK != 0 && s.ack > c.snd:
		return fmt.Sprintf("%d is acknowledged of %d", s.ack, c.snd)
	}
	for _, b := range s.blocks {
		if b.to > c.snd || b.from >= b.to {
			return fmt.Sprintf("%v is acknowledged selectively of %d", b, c.snd)
		}
		c.named = c.named.with(b)
	}
	if s.flags&packet.SYN != 0 {
		if !c.open && (l.dialed || s.flags&packet.ACK != 0) {
			c.open, c.rcv = true, 1
			if l.dialed {
				return ""
			}
			edge := s.ack + (s.edge-s.ack)>>l.scale<<l.scale // of what is beyond that a scaled window cannot tell
			c.una, c.edge, c.top, c.right = s.ack, edge, s.ack, edge
			c.wl1, c.wl2, c.wl = s.seq, s.ack, true
		}
		return ""
	}
	if !c.open {
		return "a segment comes before a SYN"
	}
	if s.data != l.text(s.seq, s.seq+uint32(len(s.data))) {
		return fmt.Sprintf("%q comes at %d", s.data, s.seq)
	}
	if l.times {
		if int32(s.stamp-c.stamp) < 0 && c.stamp != 0 {
			return fmt.Sprintf("timestamp %d comes after %d", s.stamp, c.stamp)
		}
		c.stamp = s.stamp
	}
	if s.flags&packet.ACK != 0 {
		if s.ack < c.top && !s.bare() {
			return fmt.Sprintf("%d is acknowledged after %d", s.ack, c.top)
		}
		c.right, c.top = max(c.right, s.edge), max(c.top, s.ack)
	}
	if s.seq > c.rcv+c.room || s.end < c.rcv {
		return "" // it is not acceptable
	}
	if s.flags&packet.ACK != 0 && s.ack >= c.una {
		if s.bare() && s.ack == c.una && s.edge == c.edge && slices.Equal(s.blocks, c.blocks) && c.snd > c.una {
			c.again[s.ack]++
		}
		c.una, c.blocks = s.ack, s.blocks
		if !c.wl || c.wl1 < s.seq || c.wl1 == s.seq && c.wl2 <= s.ack {
			if s.edge < c.edge {
				wrong = fmt.Sprintf("the window's edge was %d, and is %d", c.edge, s.edge)
			}
			c.edge, c.wl1, c.wl2, c.wl = s.edge, s.seq, s.ack, true
		}
		for _, b := range s.blocks {
			if b.to > s.ack {
				c.sacked = c.sacked.with(b)
			}
		}
	}
	if s.end > s.seq {
		c.held = c.held.with(span{s.seq, s.end})
		for len(c.held) > 0 && c.held[0].from <= c.rcv {
			c.rcv = max(c.rcv, c.held[0].to)
			c.held = c.held[1:]
		}
	}
	return wrong
}

// lacks returns the first stretch that the guest has not acknowledged, at most size bytes of it.
func (c *truthClient) lacks(size uint32) span {
	end := c.snd
	if c.ended {
		end--
	}
	x := span{max(1, c.una), min(end, max(1, c.una)+size)}
	for _, s := range c.sacked {
		switch {
		case s.to <= x.from:
		case s.from <= x.from:
			x.from = s.to
			x.to = min(end, x.from+size)
		default:
			x.to = min(x.to, s.from)
		}
	}
	return x
}

// segment returns a segment of the client.
func (c *truthClient) segment(seq, n uint32, fin bool) truthSegment {
	s := truthSegment{life: c.life, seq: seq, n: n, fin: fin, ackd: true, ack: c.rcv, stamp: c.clock, echo: c.stamp, limit: c.rcv + c.room}
	if c.life.times {
		c.stamps[c.clock] = true
	} else {
		s.stamp = 0
	}
	return s
}

// frame returns what Inbound is given for s.
func (c *truthClient) frame(s truthSegment) []byte {
	l := s.life
	flags, opts, ack := byte(0), "", uint32(0)
	if s.ackd {
		flags, ack = packet.ACK, l.guest+s.ack
	}
	if s.syn {
		flags |= packet.SYN
		opts = wireMSS + wireWindow7
	}
	if s.fin {
		flags |= packet.FIN
	}
	if l.times {
		opts += wireTimes(s.stamp, s.echo)
	}
	if held := c.held; l.sacks && len(held) > 0 && !s.syn {
		held = held[:min(2, len(held))]
		b := []byte{packet.OptNop, packet.OptNop, packet.OptSACK, byte(2 + 8*len(held))}
		for _, x := range held {
			b = binary.BigEndian.AppendUint32(b, l.guest+x.from)
			b = binary.BigEndian.AppendUint32(b, l.guest+x.to)
		}
		opts += string(b)
	}
	f := wireSegment(9, l.client+s.seq, ack, flags, opts, string(make([]byte, s.n)))
	for i := range 4 { // the other way round
		f[26+i], f[30+i] = f[30+i], f[26+i]
	}
	for i := range 2 {
		f[34+i], f[36+i] = f[36+i], f[34+i]
	}
	return sealed(f)
}
