package compare_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// What the engine promises is checked here against a model that knows nothing of
// how it decides. Two guests, whose streams are functions of the position, speak in
// any order on a few connections; the secondary's lags, drops, differs, and becomes
// a copy of the primary's at a commit. Whenever a frame leaves, each guest that
// could go on if the primary died at this moment must know all that it says.

// A modelGuest says what its position in each of its connections has it say.
type modelGuest struct {
	conns [3]modelConn
	wrong bool // it differs from the other
}

type modelConn struct {
	inc        uint32 // which connection with its port
	next, ack  uint32 // counted from the beginning
	fin, reset bool
	opened     bool // by a SYN; one that never had any was there before the session
	clock      uint32
	right      uint32 // of a guest that is wrong: how many bytes are not
}

const modelWindow = 2000

// model drives an engine, and holds it to what leaves.
type model struct {
	t      testing.TB
	e      *both
	cfg    compare.Config
	choose func(n int) int
	now    time.Time
	trace  []string

	p, s      modelGuest
	other     modelGuest
	marks     map[uint64]modelGuest // the primary's guest at each mark
	next      uint64                // mark
	committed uint64                // one more than the last epoch that the secondary's guest has become
	hears     bool

	told    *known            // all that the primary's guest has said
	base    *known            // what the secondary's guest has become at its last commit, and said since
	pending map[uint64]*known // what the primary's guest had said at marks that are not received

	begun [2]map[packet.Key]bool   // the flows of datagrams that each guest has sent on since the last mark
	spoke map[packet.Key]time.Time // when a guest last did

	sent, left int
	parted     int               // differences of ports
	signed     map[string]bool   // segments that the primary's guest has signed
	followed   map[uint64]bool   // ports of which the primary's guest has begun another connection by a SYN in fragments
	newest     map[uint64]uint32 // timestamp
	over       map[uint64]bool   // connections of which a RST that acknowledges something has left
	edge       map[uint64]uint32
	emitted    *known
}

func newModel(t testing.TB, cfg compare.Config, choose func(n int) int) *model {
	return &model{
		t: t, e: newBoth(t, cfg), cfg: cfg, choose: choose, now: time.Unix(1000, 0),
		marks: map[uint64]modelGuest{}, told: newKnown(), base: newKnown(), pending: map[uint64]*known{},
		newest: map[uint64]uint32{}, over: map[uint64]bool{}, edge: map[uint64]uint32{}, emitted: newKnown(),
		hears: true, signed: map[string]bool{}, followed: map[uint64]bool{},
		begun: [2]map[packet.Key]bool{{}, {}}, spoke: map[packet.Key]time.Time{},
	}
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	for _, l := range m.trace {
		m.t.Log(l)
	}
	m.t.Fatalf(format, args...)
}

// segment lets a guest say something on a connection.
func (m *model) segment(g *modelGuest, i int) (f []byte) {
	c := &g.conns[i]
	isn := c.inc<<24 | 1000
	flags, seq, data := byte(packet.ACK), isn+1+c.next, ""
	opts := ""
	switch k := m.choose(16); {
	case k == 0 && m.choose(4) == 0: // another connection with the same port
		*c = modelConn{inc: (c.inc + 1) % 128}
		flags, seq, opts = packet.SYN|packet.ACK, c.inc<<24|1000, wireMSS+wireWindow7
	case k == 1 && (c.inc > 0 || c.opened || c.next == 0 && c.ack == 0):
		c.opened = true
		flags, seq, opts = packet.SYN|packet.ACK, isn, wireMSS+wireWindow7
	case k == 2 && c.next > 10:
		c.fin = true
		flags |= packet.FIN
	case k == 3 && m.choose(3) == 0:
		c.reset = true
		flags |= packet.RST
	case k < 6:
	case k < 9: // again
		back := uint32(m.choose(30))
		back = min(back, c.next)
		seq -= back
		data = m.stream(g, c, seq, int(min(back, uint32(m.choose(20)))))
	default:
		if !c.fin {
			data = m.stream(g, c, seq, 1+m.choose(20))
			c.next += uint32(len(data))
		}
	}
	c.ack += uint32(m.choose(4) * m.choose(40))
	if m.choose(8) == 0 {
		flags |= packet.PSH
	}
	c.clock += uint32(m.choose(3))
	if i == 2 {
		defer func() { f = tag(f, 5) }()
	}
	if m.choose(12) == 0 {
		opts += wireSigned
	}
	f = wireSegment(uint16(i), seq, 5000+c.inc*2654435761+c.ack, flags, opts+wireTimes(1+c.clock, 7), data)
	binary.BigEndian.PutUint16(f[34+14:], modelWindow)
	var p packet.Packet
	p.Parse(f)
	p.TCP().SetChecksum(p.TCPChecksum())
	return f
}

func tag(f []byte, vlan byte) []byte {
	return append(append(append([]byte{}, f[:12]...), 0x81, 0, 0, vlan), f[12:]...)
}

func (m *model) stream(g *modelGuest, c *modelConn, seq uint32, n int) string {
	b := make([]byte, n)
	for i := range b {
		at := seq + uint32(i)
		b[i] = byte(at * 7 >> 2)
		if g.wrong && at&0xffffff-1001 >= c.right {
			b[i] ^= 1
		}
	}
	return string(b)
}

// frame lets a guest say anything.
func (m *model) frame(g *modelGuest) []byte {
	var f []byte
	stranger := m.other // whose connections are nobody's, for what is no segment of its own
	switch k := m.choose(20); {
	case k < 14:
		f = m.segment(g, m.choose(3))
	case k < 16:
		f = wireDatagram(uint16(53+m.choose(4)), uint16(5000+m.choose(2)), string(rune('a'+m.choose(4))))
		if m.choose(4) == 0 {
			f = tag(f, byte(m.choose(2)))
		}
	case k == 16: // a fragment, of a segment to port 0, say
		f = wireIPv4(6, 0x2000|uint16(m.choose(2)), m.segment(&stranger, 0)[34:])
	case k == 17: // tunnels: whatever is in there
		f = wireIPv4([]byte{4, 47, 41}[m.choose(3)], 0, m.segment(&stranger, 0)[14:])
	case k == 18:
		f = append(make([]byte, 12), 8, 6, 0, 1, 8, 0, 6, 4, 0, byte(1+m.choose(2)), 2, 0, 0, 0, 0, byte(m.choose(2)), 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, byte(m.choose(9)))
	default: // broken somewhere
		f = m.segment(&stranger, m.choose(2))
		f[12+m.choose(len(f)-12)] ^= byte(1 + m.choose(255))
		if m.choose(2) == 0 {
			f[14+20+12] = byte(m.choose(16)) << 4
		}
		f = f[:14+m.choose(len(f)-13)]
		if len(f) < 34 || f[23] != 6 || f[12] != 8 || f[13] != 0 {
			return f
		}
		var p packet.Packet
		if p.Parse(f); p.IsTCP() {
			f[34+12] = 15 << 4 // no whole segment: the model could not tell what it means
			f = f[:min(len(f), 34+40)]
			binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		}
	}
	return f
}

// begunInPieces returns the port of the connection that f begins, if f is the first fragment of a SYN.
func begunInPieces(f []byte) (port uint64, ok bool) {
	var p packet.Packet
	p.Parse(f)
	if !p.Fragment || !p.First || p.Proto != packet.ProtoTCP || len(f) < p.L4+packet.TCPLen {
		return 0, false
	}
	h := packet.TCP(f[p.L4:])
	return connection(h) >> 32, h.Flags()&packet.SYN != 0
}

// begin notes a datagram that a guest sends: 0 is the guest of the primary.
func (m *model) begin(guest int, f []byte) {
	var p packet.Packet
	var k packet.Key
	if p.Parse(f); p.Proto == packet.ProtoUDP && p.L4OK && !p.Fragment {
		p.Key(&k)
		if m.now.Sub(m.spoke[k]) > m.cfg.Idle { // it may be forgotten
			delete(m.begun[0], k)
			delete(m.begun[1], k)
		}
		m.spoke[k] = m.now
		m.begun[guest][k] = true
	}
}

// alone returns the flows of a guest that the other has not sent on, without the guest's ports.
func (m *model) alone(guest int) map[packet.Key]bool {
	keys := map[packet.Key]bool{}
	for k := range m.begun[guest] {
		if !m.begun[1-guest][k] {
			k.Ports &= 0xffff
			keys[k] = true
		}
	}
	return keys
}

// checkPorts refuses a difference of ports where no two flows differ in them.
func (m *model) checkPorts(r compare.Result) {
	ports := r.Reason == compare.ReasonPorts
	for _, n := range r.Notes {
		ports = ports || n.Reason == compare.ReasonPorts && n.Kind == compare.NoteDiverged
	}
	// With few connections there may be no room for a flow that a guest has begun, and one
	// that is set apart is soon forgotten.
	if !ports || m.cfg.MaxConns < 64 || m.cfg.Adaptive {
		return
	}
	m.parted++
	p, s := m.alone(0), m.alone(1)
	for k := range p {
		if s[k] {
			return
		}
	}
	m.fail("the guests differ in no port: %v, %v", m.begun[0], m.begun[1])
}

// check holds what leaves to the promises.
func (m *model) check(r compare.Result, receipt bool) {
	m.checkPorts(r)
	for _, f := range r.Release {
		m.left++
		var p packet.Packet
		p.Parse(f.Data)
		m.emitted.learn(f.Data)
		m.note("  left %x", f.Data)
		if broken(f.Data) {
			if !receipt {
				m.fail("what cannot be compared leaves: %x", f.Data)
			}
			continue
		}
		if why := m.base.lacks(f.Data); why != "" {
			m.fail("a frame leaves, and the secondary's guest does not know: %s\n%x", why, f.Data)
		}
		for epoch, k := range m.pending {
			if why := k.lacks(f.Data); why != "" {
				m.fail("a frame leaves, and the guest of checkpoint %d, which may go on, does not know: %s\n%x", epoch, why, f.Data)
			}
		}
		if !p.IsTCP() {
			if p.Kind != packet.ARP {
				m.base.words[string(f.Data[12:])]--
			}
			continue
		}
		h := p.TCP()
		if h.Checksum() != p.TCPChecksum() {
			m.fail("the checksum is wrong: %x", f.Data)
		}
		c := connection(h)
		if h.Signed() && !m.signed[string(f.Data)] {
			m.fail("a signed segment was changed: %x", f.Data)
		}
		// The peer of a connection that was reset has forgotten it, with its timestamps: it takes a SYN with the
		// same number only for the answer to another of its own (RFC 9293 section 3.10.7.4, RFC 7323 section 4.3).
		switch {
		case h.Flags()&packet.SYN != 0 && m.over[c]:
			delete(m.newest, c)
			m.over[c] = false
		case h.Flags()&(packet.RST|packet.ACK) == packet.RST|packet.ACK:
			m.over[c] = true
		}
		at := h.HeaderLen() - 8
		ts := binary.BigEndian.Uint32(h[at:])
		// A connection that was forgotten for another one begins anew.
		if old, ok := m.newest[c]; ok && int32(ts-old) < 0 && m.cfg.MaxConns == 64 && !h.Signed() {
			m.fail("timestamp %d leaves after %d: %x", ts, old, f.Data)
		}
		if !h.Signed() || int32(ts-m.newest[c]) > 0 {
			m.newest[c] = ts
		}
		if m.cfg.LowerAcks && !h.Signed() && h.Flags()&(packet.SYN|packet.RST) == 0 && len(h.Payload()) > 0 && m.p.conns[c>>32].inc == uint32(c) {
			edge := h.Ack() + uint32(binary.BigEndian.Uint16(h[14:]))<<7
			if old, ok := m.edge[c]; ok && int32(edge-old) < 0 && m.cfg.MaxConns == 64 {
				m.fail("the window's edge is %d, and was %d: %x", edge, old, f.Data)
			}
			m.edge[c] = edge
		}
	}
}

func (m *model) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

// peer has the client acknowledge some of what a guest says on a connection, or anything.
func (m *model) peer() {
	i := m.choose(2)
	c := &m.p.conns[i]
	at := func() uint32 { return c.inc<<24 | 1001 + uint32(m.choose(int(c.next)+20)) }
	f := selective(at(), at(), at(), at(), at())
	binary.BigEndian.PutUint16(f[34:], uint16(i))
	f = sealed(f)
	m.note("peer %x", f)
	m.e.Inbound(compare.Frame{Data: f})
}

func (m *model) received(epoch uint64) {
	if k := m.pending[epoch]; k != nil {
		m.base = k
		for e := range m.pending {
			if e <= epoch {
				delete(m.pending, e)
			}
		}
	}
}

func (m *model) step() {
	m.now = m.now.Add(time.Duration(m.choose(100)) * time.Millisecond)
	switch k := m.choose(40); {
	case k < 17:
		f := m.frame(&m.p)
		m.told.learn(f)
		m.note("P %x", f)
		if port, ok := begunInPieces(f); ok {
			m.followed[port] = true
		}
		m.signed[string(f)] = true
		m.begin(0, f)
		r := m.e.Primary(compare.Frame{Data: f}, m.now)
		if !r.Full {
			m.sent++
		}
		m.check(r, false)
	case k < 34:
		if !m.s.wrong && m.choose(30) == 0 {
			m.s.wrong = true
			for i := range m.s.conns {
				m.s.conns[i].right = m.s.conns[i].next
			}
		}
		f := m.frame(&m.s)
		m.note("S %x", f)
		if m.hears {
			m.begin(1, f)
			m.base.learn(f)
		}
		m.check(m.e.Secondary(compare.Frame{Data: f}, m.now), false)
	case k == 34 && m.choose(2) == 0:
		m.note("mark %d", m.next)
		if err := m.e.Mark(m.next); err != nil {
			m.fail("%v", err)
		}
		m.pending[m.next], m.marks[m.next] = m.told.clone(), m.p
		m.next++
		m.hears = false
		m.begun = [2]map[packet.Key]bool{{}, {}}
	case k == 35 && m.next > 0:
		epoch := m.next - 1 - uint64(m.choose(int(min(m.next, 2))))
		m.note("receipt %d", epoch)
		m.received(epoch)
		r, err := m.e.Received(epoch)
		if err != nil {
			m.fail("%v", err)
		}
		m.check(r, true)
	case k == 36 && m.next > m.committed:
		m.committed = m.next
		m.note("commit %d", m.next-1)
		m.received(m.next - 1)
		m.s = m.marks[m.next-1]
		r, err := m.e.SecondaryMark(m.next - 1)
		if err != nil {
			m.fail("%v", err)
		}
		m.hears = true
		m.check(r, true)
	case k == 37:
		m.check(m.e.Tick(m.now), false)
	case k > 38:
		m.peer()
	case k == 38 && m.choose(4) == 0:
		m.note("deaf")
		m.e.Deafen()
		m.hears = false
	}
	if s := m.e.Stats(); s.HeldBytes > m.cfg.MaxBytes+1<<12 {
		m.fail("%+v", s)
	}
}

// end lets all leave, and looks for what is missing.
func (m *model) end() {
	m.note("failover")
	r := m.e.Failover()
	for _, f := range r.Release {
		m.left++
		m.note("  left %x", f.Data)
		m.emitted.learn(f.Data)
	}
	if !m.cfg.LowerAcks && m.left != m.sent {
		m.fail("%d frames were sent, %d have left", m.sent, m.left)
	}
	for at, b := range m.told.bytes {
		if got, ok := m.emitted.bytes[at]; m.sent > 0 && (!ok || got != b) {
			m.fail("byte %d of connection %d has not left", uint32(at), at>>32)
		}
	}
	for c, a := range m.told.ack {
		// What is left to say of a connection that has ended, or that another one has
		// followed, is of no use.
		over := m.told.rst[c] || m.p.conns[c>>32].inc != uint32(c) || m.followed[c>>32]
		if m.emitted.ack[c] != a && !over {
			m.fail("acknowledgment %d of connection %x has not left, %d has", a, c, m.emitted.ack[c])
		}
	}
	if s := m.e.Stats(); s.Held != 0 || s.HeldBytes != 0 {
		m.fail("%+v", s)
	}
}

func modelConfig(choose func(int) int) compare.Config {
	return compare.Config{
		Marks: true, PatientAcks: choose(2) == 0, ReleaseRetransmits: choose(2) == 0, LowerAcks: choose(2) == 0,
		HoldUncompared: true, CompareVLAN: true, CompareARP: true, Adaptive: choose(2) == 0, Strikes: 1,
		MaxConns: 3 + 61*choose(2), MaxBytes: 1 << 20, MaxQueue: 1 + choose(20), Idle: time.Second,
	}
}

func TestNothingLeavesThatASurvivorWouldNotKnow(t *testing.T) {
	runs := uint64(400)
	if testing.Short() {
		runs = 40
	}
	left, parted, repeated := 0, 0, uint64(0)
	for seed := range runs + 1 {
		if seed == runs {
			seed = 5000026 // a SYN|ACK with the number of a connection that its guest has reset
		}
		rnd := rand.New(rand.NewPCG(seed, 11))
		m := newModel(t, modelConfig(rnd.IntN), rnd.IntN)
		for range 300 {
			m.step()
		}
		left += m.left
		parted += m.parted
		repeated += m.e.Stats().Repeated
		m.end()
	}
	if repeated == 0 {
		t.Error("no repetition was kept back: the model does not test that")
	}
	if parted == 0 {
		t.Error("no two guests differ in ports: the model does not test that")
	}
	if left < int(runs)*20 {
		t.Errorf("%d frames have left in %d runs: the model tests nothing", left, runs)
	}
}

func FuzzNothingLeavesThatASurvivorWouldNotKnow(f *testing.F) {
	addScripts(f, 12, 2000)
	f.Fuzz(func(t *testing.T, script []byte) {
		choose := chooserOf(&script)
		m := newModel(t, modelConfig(choose), choose)
		for len(script) > 0 {
			m.step()
		}
		m.end()
	})
}
