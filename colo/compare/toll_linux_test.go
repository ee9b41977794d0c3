package compare_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// A toll lets two guests' packets leave as a comparison does, and compares nothing: a
// segment of the primary's guest leaves when the secondary's guest has said as much, and
// acknowledges no more than both have, which is judged by two numbers of each. It stands in
// the place of the comparison where that is measured, since it shows what two guests in
// step cost without one. It is for one TCP connection over IPv4, and lets all else leave.
//
// It must go on where one guest lacks what the other has, since the guests' stacks drop
// packets when they like. So nothing waits for an acknowledgment, which is lowered instead.
// A segment whose data both guests have said leaves at once whatever waits, and whichever of
// them says it: one that repeats itself may have no room to say the rest. And where the
// secondary's guest is the later one to acknowledge, its own acknowledgment leaves, and so
// do the SACK blocks that both can give, or the client would send again only what the
// primary's guest misses.
type toll struct {
	out *link

	mu         sync.Mutex
	wait       [][]byte // segments that the secondary's guest has not said, in the order in which they came
	told, said spoken   // by the primary's guest and by the secondary's
	acked      uint32   // the greatest acknowledgment that has left, if left
	left       bool
	stamp      uint32 // the greatest timestamp of the primary's guest that has left, if stamped
	stamped    bool
}

// spoken is how far a guest has come.
type spoken struct {
	opened   bool   // it has sent a SYN, whose number the rewriter leaves as it is
	end, ack uint32 // the greatest, if ends and acks
	ends     bool
	acks     bool
	sack     []byte // the blocks of its last SACK option, 8 bytes each
}

func (s *spoken) note(t packet.TCP) {
	if t.Flags()&packet.SYN != 0 {
		s.opened = true
	} else if e := end(t); !s.ends || later(e, s.end) {
		s.end, s.ends = e, true
	}
	if t.Flags()&packet.ACK != 0 && (!s.acks || later(t.Ack(), s.ack)) {
		s.ack, s.acks = t.Ack(), true
	}
	if b := blocks(t); b != nil {
		s.sack = append(s.sack[:0], b...)
	}
}

// covers reports whether the guest has said all of t.
func (s *spoken) covers(t packet.TCP) bool {
	if t.Flags()&packet.SYN != 0 {
		return s.opened
	}
	return s.ends && !later(end(t), s.end)
}

// holds reports whether the guest has all that the blocks name.
func (s *spoken) holds(blocks []byte) bool {
	for ; len(blocks) > 0; blocks = blocks[8:] {
		lo, hi := binary.BigEndian.Uint32(blocks), binary.BigEndian.Uint32(blocks[4:])
		has := !later(hi, s.ack)
		for b := s.sack; len(b) > 0 && !has; b = b[8:] {
			has = !later(binary.BigEndian.Uint32(b), lo) && !later(hi, binary.BigEndian.Uint32(b[4:]))
		}
		if !has {
			return false
		}
	}
	return true
}

func later(a, b uint32) bool { return int32(a-b) > 0 }

func end(t packet.TCP) uint32 {
	n := uint32(len(t.Payload()))
	if t.Flags()&packet.FIN != 0 {
		n++
	}
	return t.Seq() + n
}

// blocks returns the SACK blocks of t where Linux puts them: at the end, behind timestamps.
func blocks(t packet.TCP) []byte {
	if o := t.Options(); len(o) > 16 && binary.BigEndian.Uint32(o[12:]) == 0x01010500|uint32(len(o)-14) {
		return o[16:]
	}
	return nil
}

// leave lets p leave. It acknowledges no more than the guest other has, selectively either,
// and its timestamp is one of the primary's guest and none before one that has left. leave
// changes p.
func (g *toll) leave(p []byte, h *packet.Packet, vnet int, other *spoken) {
	t := h.TCP()
	set := func(field []byte, v uint32) {
		if vnet == 0 || p[0]&packet.VNetNeedsCsum == 0 {
			t.SetChecksum(packet.Update(t.Checksum(), binary.BigEndian.Uint32(field), v))
		}
		binary.BigEndian.PutUint32(field, v)
	}
	if other.acks && later(t.Ack(), other.ack) {
		set(t[8:], other.ack)
	}
	o := t.Options()
	if len(o) >= 12 && binary.BigEndian.Uint32(o) == 0x0101080a {
		switch v := binary.BigEndian.Uint32(o[4:]); {
		case other == &g.said && (!g.stamped || later(v, g.stamp)):
			g.stamp, g.stamped = v, true
		case g.stamped:
			set(o[4:], g.stamp)
		}
	}
	if b := blocks(t); !other.holds(b) {
		for i := range 1 + len(b)/4 {
			set(o[12+4*i:], 0x01010101) // nothing, four times
		}
	}
	if !g.left || later(t.Ack(), g.acked) {
		g.acked, g.left = t.Ack(), true
	}
	g.out.WritePacket(p)
}

func (g *toll) primary(p []byte, vnet int) {
	var h packet.Packet
	h.ParseVNet(p, vnet)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !h.IsTCP() {
		g.out.WritePacket(p)
		return
	}
	t := h.TCP()
	g.told.note(t)
	if !g.said.covers(t) {
		g.wait = append(g.wait, append([]byte(nil), p...))
		return
	}
	g.leave(p, &h, vnet, &g.said)
}

func (g *toll) secondary(p []byte, vnet int) {
	var h packet.Packet
	if h.ParseVNet(p, vnet); !h.IsTCP() {
		return
	}
	t := h.TCP()
	g.mu.Lock()
	defer g.mu.Unlock()
	repeats := g.said.covers(t)
	g.said.note(t)
	var w packet.Packet
	rest := g.wait[:0]
	for _, q := range g.wait {
		if w.ParseVNet(q, vnet); g.said.covers(w.TCP()) {
			g.leave(q, &w, vnet, &g.said)
		} else {
			rest = append(rest, q)
		}
	}
	clear(g.wait[len(rest):])
	g.wait = rest
	news := g.left && later(t.Ack(), g.acked) && later(g.told.ack, g.acked)
	selects := blocks(t) != nil && g.told.holds(blocks(t)) && !later(g.acked, t.Ack())
	bare := len(t.Payload()) == 0 && t.Flags()&packet.FIN == 0
	switch {
	case !g.told.covers(t), t.Flags()&(packet.SYN|packet.RST) != 0:
	case bare && (news || selects), !bare && repeats:
		g.leave(p, &h, vnet, &g.told)
	}
}

// Guests that lose packets, each at other times, go on in step without a comparison, and so
// what that costs can be measured at any time.
func TestTransfersWithoutAComparisonNeverStall(t *testing.T) {
	for _, dev := range []tap.Config{{}, {VNetHdrLen: 12, Offload: tap.OffloadTCP}} {
		for _, loss := range []float64{0, 0.005} {
			t.Run(fmt.Sprintf("%#x/lost=%v", dev.Offload, loss), func(t *testing.T) {
				seed := uint64(0)
				w := newWorldWith(t, dev, 0, func(l *link) {
					seed++
					l.loss, l.dup, l.late, l.rng = loss, 0, 0, newLink(seed, nil).rng
				}, true)
				startServers(t, w)
				w.drops.Store(300)
				conn := w.dial(t, "tcp", at(netns.Guest4))
				download(t, conn, 4<<20, 1, func() {})
				upload(t, conn, 4<<20, 2, func() {})
			})
		}
	}
}
