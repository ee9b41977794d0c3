package compare_test

import (
	"sync"

	"github.com/gocolo/lockstep/internal/packet"
)

// A toll lets two guests' packets leave as a comparison does, and compares nothing: a
// packet of the primary's guest leaves when the secondary's guest has said and
// acknowledged as much, which is judged by two numbers. It stands in the place of the
// comparison where that is measured, since it shows what two guests in step cost without
// one. It is for one TCP connection over IPv4, and for whatever else for which two
// packets in the same place count as equal.
type toll struct {
	out *link

	mu       sync.Mutex
	wait     [][]byte
	gone     int    // of wait, how many have left
	end, ack uint32 // the greatest of the secondary's guest
	begun    bool
}

// passes reports whether the secondary's guest has said as much as h.
func (g *toll) passes(h *packet.Packet) bool {
	if !h.IsTCP() {
		return true
	}
	t := h.TCP()
	return g.begun && int32(end(t)-g.end) <= 0 && int32(t.Ack()-g.ack) <= 0
}

func end(t packet.TCP) uint32 {
	n := uint32(len(t.Payload()))
	if t.Flags()&(packet.SYN|packet.FIN) != 0 {
		n++
	}
	return t.Seq() + n
}

func (g *toll) primary(p []byte, vnet int) {
	var h packet.Packet
	h.ParseVNet(p, vnet)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone == len(g.wait) && g.passes(&h) {
		g.out.WritePacket(p)
		return
	}
	g.wait = append(g.wait, append([]byte(nil), p...))
}

func (g *toll) secondary(p []byte, vnet int) {
	var h packet.Packet
	if h.ParseVNet(p, vnet); !h.IsTCP() {
		return
	}
	t := h.TCP()
	e, a := end(t), t.Ack()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.begun || int32(e-g.end) > 0 {
		g.end = e
	}
	if !g.begun || int32(a-g.ack) > 0 {
		g.ack = a
	}
	g.begun = true
	for ; g.gone < len(g.wait); g.gone++ {
		if h.ParseVNet(g.wait[g.gone], vnet); !g.passes(&h) {
			return
		}
		g.out.WritePacket(g.wait[g.gone])
		g.wait[g.gone] = nil
	}
	g.wait, g.gone = g.wait[:0], 0
}
