package filter_test

import (
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// chooser returns a function that chooses one of n by the next bytes of s, and at its end by a
// sequence that is always the same.
func (s *script) chooser() func(n int) int {
	rest := rand.New(rand.NewPCG(1, 2))
	return func(n int) int {
		switch {
		case len(s.b) == 0:
			return rest.IntN(n)
		case n > 256:
			return (s.next()<<8 | s.next()) % n
		}
		return s.next() % n
	}
}

// stranger has somebody send a segment between the same hosts, which belongs to no connection or
// to one of a few others of which nothing is known.
func (m *lineage) stranger() {
	toGuest := m.choose(2) == 0
	opts := make([]byte, 4*m.choose(6))
	for i := range opts {
		opts[i] = byte(m.choose(32))
	}
	f := m.segment(toGuest, 1000+m.choose(2), m.number(), m.number(), uint8(m.choose(256)), opts)
	m.note("a stranger sends %x", f)
	switch {
	case toGuest:
		m.edges[0].Inbound(f, 0)
		m.r.Inbound(f, 0)
	case m.alone:
		m.r.Outbound(f, 0)
		m.edges[0].Outbound(f, 0)
	default:
		m.edges[0].Outbound(f, 0)
		m.r.Outbound(f, 0)
	}
	var p packet.Packet
	if p.Parse(f); p.IsTCP() && p.TCP().Checksum() != p.TCPChecksum() {
		m.fail("its checksum is wrong: %x", f)
	}
}

// What a lineage does, whatever it is that is opened, ended, said and taken over, in whichever
// order, with strangers between.
func FuzzConnectionsOutliveAnyNumberOfFailovers(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 30))
		b := make([]byte, 1000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &script{b}
		v6 := s.next()&1 != 0
		m := &lineage{t: t, choose: s.chooser(), v6: v6, edges: [2]*filter.Edge{new(filter.Edge), nil}}
		m.protect()
		for len(s.b) > 0 {
			if m.step(); m.choose(4) == 0 {
				m.stranger()
			}
		}
	})
}
