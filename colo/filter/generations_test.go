package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/internal/require"
)

// A model of a guest that goes from host to host: each host that takes over is protected by
// the next one, which takes over from it. A client knows the sequence numbers with which its
// connection was opened. The two guests of a pair chose different ones if that was after the
// last checkpoint. Whatever is opened, ended and opened again in any generation, each segment
// has the numbers that its receiver knows when it gets there.

type lived struct {
	state  string // "", "asked", "answered", "open"; the guest's own: "calls", "open"
	client uint32 // the number that the guest expects of the client
	out    uint32 // how much the guest has sent
	clock  uint32 // since the guest has opened it
	hosts  [2]own // the primary's guest, or that of the host that is alone; and the secondary's
	shown  own    // to the client
	lost   int    // how many hosts it has outlived
	asked  bool   // the client has opened it
	half   bool   // its handshake was not complete when its host was protected anew, and no checkpoint has come since it is; what the client says first is held until one has
}

// An own is what one guest chose when a connection was opened: the sequence number that
// follows its SYN, and the timestamp in the SYN.
type own struct{ number, time uint32 }

type lineage struct {
	t      testing.TB
	choose func(int) int
	v6     bool
	conns  [4]lived
	edges  [2]*filter.Edge
	r      *twice // of the secondary, or of the host that has taken over and is alone
	alone  bool
	trace  []string
	epoch  uint64
	wanted bool // a checkpoint is

	failovers, outlived, completed, repeated, held int
}

func (m *lineage) fail(format string, args ...any) {
	m.t.Helper()
	for _, l := range m.trace {
		m.t.Log(l)
	}
	m.t.Fatalf(format, args...)
}

func (m *lineage) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *lineage) number() uint32 {
	if m.choose(2) == 0 {
		return uint32(m.choose(40)) - 20 // it is about to wrap
	}
	return uint32(m.choose(256))<<24 | uint32(m.choose(1<<16))
}

// segment builds a segment of connection i, whose client has a port that no other has.
func (m *lineage) segment(toGuest bool, i int, seq, ack uint32, flags uint8, opts []byte) []byte {
	f := segment(toGuest, m.v6, seq, ack, flags, opts, nil)
	at := 14 + 20
	if m.v6 {
		at = 14 + 40
	}
	if !toGuest {
		at += 2
	}
	binary.BigEndian.PutUint16(f[at:], uint16(40000+i))
	return resealed(f)
}

// clocked returns TCP options that have a timestamp and the echo of one.
func clocked(value, echo uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{1, 1, 8, 10}, value), echo)
}

// hosts returns how many hosts have a guest that runs.
func (m *lineage) hosts() int {
	if m.alone {
		return 1
	}
	return 2
}

// in has the client send a segment, which reaches each guest as if it were its own.
func (m *lineage) in(why string, i int, flags uint8, beyond uint32) {
	m.t.Helper()
	c := &m.conns[i]
	sacks := flags == packet.ACK && m.choose(3) == 0
	to := func(o own) []byte {
		switch {
		case flags&packet.ACK == 0:
			return m.segment(true, i, c.client-1, 0, flags, clocked(5, 0))
		case flags&packet.SYN != 0:
			return m.segment(true, i, c.client-1, o.number, flags, clocked(5, o.time+c.clock))
		}
		opts := clocked(5, o.time+c.clock)
		if sacks {
			opts = append(opts, 1, 1, 5, 10)
			opts = binary.BigEndian.AppendUint32(opts, o.number+beyond+10)
			opts = binary.BigEndian.AppendUint32(opts, o.number+beyond+19)
		}
		return m.segment(true, i, c.client, o.number+beyond, flags, opts)
	}
	f := to(c.shown)
	m.note("%d: %s %d/%d comes", i, why, c.client, c.shown.number+beyond)
	for h := range m.hosts() {
		if h == 0 && !m.edges[0].Inbound(f, 0) { // what the other one gets has come through it
			m.heldBack(c)
			m.in(why, i, flags, beyond) // again
			return
		}
		g := bytes.Clone(f)
		if (h == 1 || m.alone) && !m.r.Inbound(g, 0) {
			m.fail("it is not delivered to the guest of host %d", h)
		}
		want := to(c.hosts[h])
		if !bytes.Equal(g, want) {
			m.fail("the guest of host %d gets %x\nand not %x", h, g, want)
		}
	}
}

// heldBack is called when a segment of c is not delivered. Its client sends it again, to whichever
// host there is then.
func (m *lineage) heldBack(c *lived) {
	m.t.Helper()
	if !c.half || m.alone || !m.wanted {
		m.fail("it is held, and a checkpoint is asked for: %t", m.wanted)
	}
	m.wanted = false
	m.note("it is held")
	if m.held++; m.choose(2) == 0 {
		m.checkpoint()
	} else {
		m.failover()
	}
}

// out has both guests say the same, each in its own numbers.
func (m *lineage) out(why string, i int, flags uint8) {
	m.t.Helper()
	c := &m.conns[i]
	m.note("%d: %s leaves", i, why)
	of := func(o own) []byte {
		seq, ack := o.number+c.out, c.client
		if flags&packet.SYN != 0 {
			seq--
		}
		if flags&packet.ACK == 0 {
			ack = 0
		}
		return m.segment(false, i, seq, ack, flags, clocked(o.time+c.clock, 5))
	}
	for h := m.hosts() - 1; h >= 0; h-- {
		f, want := of(c.hosts[h]), of(c.shown)
		switch {
		case h == 1:
			// A SYN is compared by itself: the guests' numbers differ, unless it is repeated.
			if want = of(c.hosts[0]); flags&packet.SYN != 0 && c.state != "open" {
				want = bytes.Clone(f)
			}
			m.r.Outbound(f, 0)
		case m.alone:
			m.r.Outbound(f, 0)
			fallthrough
		default:
			m.edges[0].Outbound(f, 0)
		}
		if !bytes.Equal(f, want) {
			m.fail("from host %d leaves %x\nand not %x", h, f, want)
		}
	}
}

// checkpoint gives the secondary the state of the primary: of the guest and of the Edge.
func (m *lineage) checkpoint() {
	m.note("checkpoint")
	m.edges[0].Mark(m.epoch)
	if err := loadEdge(m.t, m.edges[1], save(m.t, m.edges[0])); err != nil {
		m.fail("%v", err)
	}
	m.edges[0].Received(m.epoch)
	m.epoch++
	m.r.Commit(0)
	for i := range m.conns {
		c := &m.conns[i]
		c.hosts[1] = c.hosts[0]
		if c.half && c.state == "open" {
			c.half = false
			m.completed++
		}
	}
}

// protect pairs the host with another one.
func (m *lineage) protect() {
	m.note("protect")
	if m.r != nil {
		if left := m.edges[0].Adopt(m.r.Rewriter); left != 0 {
			m.fail("%d connections are left", left)
		}
		for i := range m.conns {
			if c := &m.conns[i]; c.state == "answered" || c.state == "calls" {
				c.half = true
			}
		}
	}
	m.edges[0].Checkpoint = func() { m.wanted = true }
	m.edges[1], m.epoch = new(filter.Edge), 0
	m.r = newTwice(m.t, filter.RewriterConfig{Edge: m.edges[1]})
	m.alone = false
	m.checkpoint()
}

func (m *lineage) failover() {
	m.note("failover")
	m.r.Failover()
	m.edges[0], m.edges[1], m.alone = m.edges[1], nil, true
	m.failovers++
	for i := range m.conns {
		c := &m.conns[i]
		c.hosts[0] = c.hosts[1]
		switch {
		case c.state == "asked":
			c.shown = c.hosts[0] // nobody has answered, and this guest will
		case c.state == "open" && c.shown != c.hosts[0]:
			if c.lost++; c.lost > 1 {
				m.outlived++
			}
		}
	}
}

func (m *lineage) step() {
	i := m.choose(len(m.conns))
	c := &m.conns[i]
	switch k := m.choose(24); {
	case k < 2 && c.state == "": // anew, between the same addresses
		was := *c
		for *c = (lived{}); c.client == 0 || c.client-was.client+1<<20 < 1<<21; {
			c.client = m.number()
		}
		for h := range c.hosts {
			c.hosts[h] = own{m.number(), m.number()}
			if k == 0 && m.choose(4) == 0 {
				c.hosts[h].number = was.hosts[h].number
			}
			for k == 1 && c.hosts[h].number == was.hosts[h].number {
				c.hosts[h].number++ // no guest calls twice with one number (RFC 9293 section 3.4.1)
			}
		}
		if c.hosts[1].number == c.hosts[0].number {
			c.hosts[1].number++ // by it a guest's own SYN|ACK is told from that of the other
		}
		c.shown = c.hosts[0]
		if k == 0 {
			c.state, c.asked = "asked", true
			m.in("SYN", i, packet.SYN, 0)
		} else {
			c.state = "calls"
			m.out("SYN", i, packet.SYN)
		}
	case k < 5 && c.state == "asked":
		c.state = "answered"
		m.out("SYN|ACK", i, packet.SYN|packet.ACK)
	case k < 5 && c.state == "answered":
		c.state = "open"
		m.in("ACK", i, packet.ACK, 0)
	case k < 5 && c.state == "calls":
		c.state = "open"
		m.in("SYN|ACK", i, packet.SYN|packet.ACK, 0)
		m.out("ACK", i, packet.ACK)
	case k < 7 && c.state == "open" && c.asked && c.out == 0: // the answer to it was lost on its way to the guest
		if c.lost > 1 {
			m.repeated++
		}
		m.out("SYN|ACK again", i, packet.SYN|packet.ACK)
		m.in("ACK again", i, packet.ACK, 0)
	case k < 9 && c.state == "open":
		m.in("data", i, packet.ACK, uint32(m.choose(int(c.out)+1)))
	case k < 13 && c.state == "open":
		c.out += uint32(m.choose(3))
		c.clock += uint32(m.choose(3))
		m.out("data", i, packet.ACK)
	case k == 13 && c.state == "open": // a stranger's SYN, which the guest challenges
		f := m.segment(true, i, c.client^1<<30, 0, packet.SYN, nil)
		m.edges[0].Inbound(f, 0)
		m.r.Inbound(f, 0)
		m.out("challenge", i, packet.ACK)
	case k == 14 && c.state == "open": // a stranger's RST
		f := m.segment(true, i, c.client+9, 0, packet.RST, nil)
		m.edges[0].Inbound(f, 0)
		m.r.Inbound(f, 0)
	case k == 15 && c.state == "open" && m.choose(3) == 0:
		m.out("RST", i, packet.RST|packet.ACK)
		c.state = ""
	case k == 16 && c.state == "open": // an error about what the guest has sent
		for h := range m.hosts() {
			about := func(o own) []byte {
				return quoting(m.t.(*testing.T), m.segment(false, i, o.number+c.out, c.client, packet.ACK, nil), true, m.v6, 8)
			}
			f, want := about(c.shown), about(c.hosts[h])
			if m.edges[0].Inbound(f, 0); h == 1 || m.alone {
				m.r.Inbound(f, 0)
			}
			if !bytes.Equal(f, want) {
				m.fail("an error reaches host %d as %x\nand not %x", h, f, want)
			}
		}
	case k == 17 && !m.alone && m.choose(4) == 0:
		m.checkpoint()
	case k == 18 && !m.alone && m.choose(4) == 0:
		m.failover()
	case k >= 18 && m.alone && m.choose(2) == 0:
		m.protect()
	}
}

func TestConnectionsOutliveAnyNumberOfFailovers(t *testing.T) {
	seeds := require.Many[uint64](100, 300, 5000)
	failovers, outlived, completed, repeated, held := 0, 0, 0, 0, 0
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 29))
		m := &lineage{t: t, choose: rnd.IntN, v6: seed%2 == 1, edges: [2]*filter.Edge{new(filter.Edge), nil}}
		m.note("seed %d", seed)
		m.protect()
		for range 400 {
			m.step()
		}
		failovers, outlived, completed, repeated, held = failovers+m.failovers, outlived+m.outlived, completed+m.completed, repeated+m.repeated, held+m.held
	}
	if failovers < 2*int(seeds) || outlived < int(seeds)/4 || completed < int(seeds)/20 || repeated < int(seeds)/20 || held < int(seeds)/20 {
		t.Errorf("%d failovers, %d connections outlived two, %d handshakes went on, %d SYN|ACKs were repeated, and %d answers were held, in %d runs: nothing was tried", failovers, outlived, completed, repeated, held, seeds)
	}
}
