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

// A model of the secondary's guest and of clients, who know the primary's numbers. Whatever
// strangers, late packets, checkpoints and a failover come between, each segment of a
// connection reaches the other end in that end's own numbers.

type modelled struct {
	open, answered, acked, known bool
	heard                        bool   // a SYN of it came since the last checkpoint
	client                       uint32 // the number after the client's SYN
	p, s                         uint32 // the numbers after the guests' own SYNs
	old                          uint32 // client of the connection before
	out                          uint32 // how much the secondary's guest has sent
}

type rewriting struct {
	t      testing.TB
	r      *twice
	choose func(int) int
	conns  [3]modelled
	over   bool
	v6     bool
	trace  []string
}

func (m *rewriting) number() uint32 {
	if m.choose(2) == 0 {
		return uint32(m.choose(40)) - 20
	}
	return uint32(m.choose(256))<<24 | uint32(m.choose(1<<16))
}

func (m *rewriting) fail(format string, args ...any) {
	m.t.Helper()
	for _, l := range m.trace {
		m.t.Log(l)
	}
	m.t.Fatalf(format, args...)
}

// frame returns a segment of the connection i, whose client has a port of its own.
func (m *rewriting) frame(toGuest bool, i int, seq, ack uint32, flags uint8, data string) []byte {
	var opts []byte
	if m.choose(3) == 0 && flags&packet.SYN == 0 {
		opts = []byte{1, 1, 5, 10, 0, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(opts[4:], ack+10)
		binary.BigEndian.PutUint32(opts[8:], ack+20)
	}
	f := segment(toGuest, m.v6, seq, ack, flags, opts, []byte(data))
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

func resealed(f []byte) []byte {
	var p packet.Packet
	p.Parse(f)
	p.TCP().SetChecksum(p.TCPChecksum())
	return f
}

// in gives the guest a segment, and want is the acknowledgment that it is to have there.
func (m *rewriting) in(why string, i int, seq, ack, want uint32, data string) {
	m.t.Helper()
	f := m.frame(true, i, seq, ack, packet.ACK, data)
	ok := m.r.Inbound(f, 0)
	m.trace = append(m.trace, fmt.Sprintf("%d: %s %d/%d, delivered %t", i, why, seq, ack, ok))
	if ok {
		m.check(f, seq, want, ack)
	}
}

// check compares the numbers of a segment that reaches the guest with those that it is to have.
func (m *rewriting) check(f []byte, seq, want, was uint32) {
	m.t.Helper()
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	if h.Seq() != seq || h.Ack() != want {
		m.fail("the guest gets %d/%d, want %d/%d", h.Seq(), h.Ack(), seq, want)
	}
	for kind, data, rest, ok := packet.NextOption(h.Options()); ok; kind, data, rest, ok = packet.NextOption(rest) {
		if kind == packet.OptSACK && binary.BigEndian.Uint32(data) != want+10 {
			m.fail("a SACK block begins at %d, want %d", binary.BigEndian.Uint32(data), want+10)
		}
	}
	if h.Checksum() != p.TCPChecksum() {
		m.fail("its checksum is wrong: %x", f)
	}
}

// out has the guest send a segment, which is to leave with the number want. What was held
// for the guest comes back.
func (m *rewriting) out(why string, i int, seq, want uint32, flags uint8, data string) {
	m.t.Helper()
	c := &m.conns[i]
	f := m.frame(false, i, seq, c.client, flags, data)
	early := bytes.Clone(m.r.Outbound(f, 0))
	var p packet.Packet
	p.Parse(f)
	m.trace = append(m.trace, fmt.Sprintf("%d: %s %d leaves as %d", i, why, seq, p.TCP().Seq()))
	if p.TCP().Seq() != want || p.TCP().Ack() != c.client || p.TCP().Checksum() != p.TCPChecksum() {
		m.fail("it leaves as %d/%d, want %d/%d, or with a wrong checksum", p.TCP().Seq(), p.TCP().Ack(), want, c.client)
	}
	if early != nil {
		m.trace = append(m.trace, "  and what was held is delivered")
		m.check(early, c.client, c.s, c.p)
		c.known = true
	}
}

func (m *rewriting) step() {
	i := m.choose(len(m.conns))
	c := &m.conns[i]
	gone := m.choose(100) // acknowledged beyond the first number
	switch k := m.choose(20); {
	case k == 0 && !c.open:
		*c = modelled{open: true, client: m.number(), p: m.number(), s: m.number(), old: c.client}
		if m.over {
			c.p = c.s // the client has the number from this guest
		}
		fallthrough
	case k == 1 && c.open && !c.acked:
		c.heard = true
		f := m.frame(true, i, c.client-1, 0, packet.SYN, "")
		was := bytes.Clone(f)
		m.trace = append(m.trace, fmt.Sprintf("%d: SYN %d", i, c.client-1))
		if !m.r.Inbound(f, 0) || !bytes.Equal(f, was) {
			m.fail("a SYN does not reach the guest as it is")
		}
	case k < 5 && c.open && !c.known: // the guest answers, or does so again
		c.answered = true
		m.out("SYN|ACK", i, c.s-1, c.s-1, packet.SYN|packet.ACK, "")
	case k < 8 && c.open && (c.heard && !m.over || c.answered || c.acked):
		// The primary's guest has answered, and the client acknowledges.
		c.acked = true
		m.in("ACK", i, c.client, c.p, c.s, "")
		c.known = c.known || c.answered
	case k < 11 && c.known:
		m.in("data", i, c.client, c.p+uint32(gone), c.s+uint32(gone), "data")
	case k < 14 && c.known:
		c.out += 3
		m.out("data", i, c.s+c.out-3, c.p+c.out-3, packet.ACK, "abc")
	case k == 14 && c.known: // a stranger's SYN, which the guest challenges
		m.r.Inbound(m.frame(true, i, m.number()|1<<30, 0, packet.SYN, ""), 0)
		m.out("challenge", i, c.s+c.out, c.p+c.out, packet.ACK, "")
	case k == 15 && c.known: // a stranger's RST
		m.trace = append(m.trace, fmt.Sprintf("%d: RST", i))
		m.r.Inbound(m.frame(true, i, c.client+1+uint32(gone), 0, packet.RST, ""), 0)
	case k == 16 && c.known: // the guest gives up, and a late packet of the connection comes
		m.out("RST", i, c.s+c.out, c.p+c.out, packet.RST|packet.ACK, "")
		m.in("late", i, c.client, c.p, c.s, "")
		c.open, c.known, c.answered, c.acked = false, false, false, false
	case k == 17 && c.open && c.answered && !c.known && c.old-c.client > 1<<20 && c.client-c.old > 1<<20:
		// A late packet of the connection before it.
		m.trace = append(m.trace, fmt.Sprintf("%d: late ACK %d", i, c.old))
		m.r.Inbound(m.frame(true, i, c.old, m.number(), packet.ACK, ""), 0)
	case k == 18 && c.known && m.choose(2) == 0: // an error about what the guest has sent
		quoted := m.frame(false, i, c.p+uint32(gone), 0, packet.ACK, "abc")[14:][:28]
		if m.v6 {
			return
		}
		f := append(m.frame(true, i, 0, 0, 0, "")[:34], 3, 4, 0, 0, 0, 0, 5, 0)
		f = append(f, quoted...)
		f[14+9] = packet.ProtoICMP
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		binary.BigEndian.PutUint16(f[36:], packet.Checksum(f[34:]))
		if !m.r.Inbound(f, 0) || binary.BigEndian.Uint32(f[34+8+24:]) != c.s+uint32(gone) || packet.Checksum(f[34:]) != 0 {
			m.fail("the quoted number is %d, want %d, or its checksum is wrong", binary.BigEndian.Uint32(f[34+8+24:]), c.s+uint32(gone))
		}
	case k == 19 && !m.over && m.choose(30) == 0:
		m.trace = append(m.trace, "failover")
		m.r.Failover()
		m.over = true
		for j := range m.conns {
			if d := &m.conns[j]; d.open && !d.acked {
				d.p = d.s // the primary's guest had not answered
			}
		}
	case k == 19 && !m.over && m.choose(4) == 0:
		m.trace = append(m.trace, "checkpoint")
		m.r.Commit(0)
		for j := range m.conns {
			d := &m.conns[j]
			switch {
			case d.acked, d.open && m.choose(2) == 0: // the primary's guest had answered
				d.s, d.known, d.answered, d.acked = d.p, true, true, true
			case d.open: // the guest may answer with another number
				d.answered, d.s = false, m.number()
			}
			d.out, d.heard = 0, false
		}
	}
}

func TestEachEndGetsItsOwnNumbers(t *testing.T) {
	seeds := require.Many[uint64](100, 350, 10000)
	rewritten, held := uint64(0), uint64(0)
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 23))
		m := &rewriting{t: t, r: newTwice(t, filter.RewriterConfig{Edge: new(filter.Edge)}), choose: rnd.IntN, v6: seed%2 == 1}
		m.trace = append(m.trace, fmt.Sprint("seed ", seed))
		for range 300 {
			m.step()
		}
		s := m.r.Stats()
		rewritten, held = rewritten+s.Rewritten, held+s.Held
	}
	if rewritten < 30*seeds || held < seeds/4 {
		t.Errorf("%d segments were translated and %d held in %d runs: nothing was tried", rewritten, held, seeds)
	}
}
