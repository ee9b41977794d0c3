package compare_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// An input is what two guests get from their clients or their applications.
type input struct {
	kind inputKind
	port uint16
	at   uint32  // where they belong among all that have come
	all  []input // of inputResend: the data
	n, m int     // bytes that come, and bytes that they answer; n of what opens a connection: it is the nth with the port
}

type inputKind int

const (
	inputSYN    inputKind = iota // a client opens a connection
	inputAgain                   // it repeats that
	inputData                    // it sends n bytes, and the guest answers with m
	inputFIN                     // it closes its half
	inputClose                   // the guest closes its half
	inputReset                   // the guest resets the connection
	inputDial                    // the guest opens a connection
	inputDialed                  // a client accepts it
	inputAsk                     // a datagram comes
	inputRepeat                  // a timer of the guest's has it repeat its last data
	inputLife                    // a timer has it send a sign of life
	inputResend                  // a client sends again what is not acknowledged to it
	inputs
)

// A steadyConn is a connection of a guest, by the numbers of the primary's.
type steadyConn struct {
	isn, snd, rcv uint32
	own           uint32 // the number that this guest has begun with
	last          string // its last data
	closed        bool   // it has sent a FIN
}

// A steadyGuest answers each input in the same way, but for its initial numbers, and how it cuts
// what it sends. It is copied at a mark.
type steadyGuest struct {
	conns   map[uint16]steadyConn
	next    int    // the input that it takes next
	counter uint32 // of its initial numbers
	cut     int    // the most bytes of a segment

	loses func() bool // whether it has no room for what comes
	idle  func() bool // whether it lets an acknowledgment wait, or a timer does not run out: the guests have timers of their own
}

func (g steadyGuest) clone() steadyGuest {
	g.conns = maps.Clone(g.conns)
	return g
}

// steadyISN is the initial number of the primary's guest on its nth connection with a port.
func steadyISN(port uint16, nth int) uint32 { return uint32(port)*0x9e3779b1 + uint32(nth)*0x10001 }

// take answers an input. own returns the guest's initial number of a connection.
func (g *steadyGuest) take(in input, own func(in input, counter uint32) uint32) (out [][]byte) {
	c, ok := g.conns[in.port]
	const options = wireMSS + wireWindow7
	say := func(seq uint32, flags byte, opts, data string) {
		ack := c.rcv
		if flags&packet.ACK == 0 {
			ack = 0
		}
		out = append(out, sealed(wireSegment(in.port, seq, ack, flags, opts, data)))
	}
	text := func(from, n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte('a' + (from+i)%26)
		}
		return string(b)
	}
	switch in.kind {
	case inputSYN, inputDial:
		g.counter++
		c = steadyConn{isn: steadyISN(in.port, in.n), own: own(in, g.counter), rcv: 501 + 1000*uint32(in.n)}
		c.snd = c.isn + 1
		if in.kind == inputSYN {
			say(c.own, packet.SYN|packet.ACK, options, "")
		} else {
			say(c.own, packet.SYN, options, "")
		}
	case inputAgain:
		if ok && !g.idle() {
			say(c.own, packet.SYN|packet.ACK, options, "")
		}
	case inputDialed:
		say(c.snd, packet.ACK, "", "")
	case inputResend:
		for _, in := range in.all {
			out = append(out, g.take(in, own)...)
		}
		return out
	case inputData:
		if c.rcv != in.at || g.loses() {
			say(c.snd, packet.ACK, "", "") // it has it, or lacks what is before it
			break
		}
		c.rcv += uint32(in.n)
		if in.m == 0 || c.closed {
			if !g.idle() {
				say(c.snd, packet.ACK, "", "")
			}
		}
		for at := 0; at < in.m && !c.closed; at += g.cut {
			c.last = text(int(c.snd-c.isn), min(g.cut, in.m-at))
			say(c.snd, packet.ACK, "", c.last)
			c.snd += uint32(len(c.last))
		}
	case inputFIN:
		c.rcv++
		say(c.snd, packet.ACK, "", "")
	case inputClose:
		say(c.snd, packet.FIN|packet.ACK, "", "")
		c.snd++
		c.closed = true
	case inputReset:
		say(c.snd, packet.RST|packet.ACK, "", "")
		delete(g.conns, in.port)
		return out
	case inputAsk:
		return [][]byte{wireDatagram(80, in.port, text(in.n, 5))}
	case inputRepeat:
		if c.last != "" && !c.closed && !g.idle() {
			say(c.snd-uint32(len(c.last)), packet.ACK, "", c.last)
		}
	case inputLife:
		if !g.idle() {
			say(c.snd-1, packet.ACK, "", "")
		}
	}
	g.conns[in.port] = c
	return out
}

// pay returns an acknowledgment of each connection that has given one, of all that may wait.
func (g *steadyGuest) pay() (out [][]byte) {
	for _, port := range slices.Sorted(maps.Keys(g.conns)) {
		if c := g.conns[port]; c.rcv != 0 {
			out = append(out, sealed(wireSegment(port, c.snd, c.rcv, packet.ACK, "", "")))
		}
	}
	return out
}

// A steadyPeer has what a client knows of a connection.
type steadyPeer struct {
	open, dialed, closing, closed, over bool
	acked                               bool   // the guest has answered a segment, and so has the number of the primary's
	gone                                bool   // it has been given a RST
	sent                                uint32 // what it has sent, with a FIN
	data                                []input
	nth                                 int // how many connections with the port came before
}

// sawAll reports whether a client knows all that c, of the primary's guest, has said, which has
// taken all inputs.
func (p *steadyPeer) sawAll(got, acked uint32, c steadyConn) bool {
	return c.closed && got == c.snd-c.isn && acked == c.rcv && c.rcv == 501+1000*uint32(p.nth)+p.sent
}

// Two guests get the same inputs, each when it comes to them, and say the same, with checkpoints
// between. Then no other checkpoint is asked for, and in the end nothing waits: all that the
// primary's guest has said has left, and all that it acknowledges is acknowledged.
func TestGuestsThatSayTheSameNeedNoCheckpoint(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		if text := steady(seed); text != "" {
			t.Errorf("seed %d: %s", seed, text)
		}
	}
}

// steady runs a pair of guests, and returns what is wrong.
func steady(seed uint64) (wrong string) {
	r := rand.New(rand.NewPCG(seed, 7))
	chance := func(n int) bool { return r.IntN(n) == 0 }
	cfg := everything()
	cfg.Marks, cfg.Adaptive = !chance(3), chance(3)
	e := compare.NewEngine(cfg)
	if chance(4) {
		e.TakeNothingAsPlain()
	}
	now := time.Unix(1000, 0)
	cuts := []int{1000, 10, 7, 1}
	p := steadyGuest{conns: map[uint16]steadyConn{}, cut: cuts[r.IntN(4)]}
	s := steadyGuest{conns: map[uint16]steadyConn{}, cut: cuts[r.IntN(4)]}
	numbers := r.IntN(3)
	p.idle = func() bool { return false }
	s.idle, p.loses, s.loses = p.idle, p.idle, p.idle
	lossy := chance(3)
	if lossy {
		p.loses = func() bool { return chance(9) }
		s.loses = func() bool { return chance(4) }
	}
	timers := chance(2)
	if timers {
		p.idle = func() bool { return chance(3) }
		s.idle = func() bool { return chance(2) }
	}
	primarys := func(in input, _ uint32) uint32 { return steadyISN(in.port, in.n) }
	secondarys := func(in input, counter uint32) uint32 {
		switch numbers {
		case 0:
			return r.Uint32()
		case 1:
			return 1000 * counter // it counts, and is rolled back with the rest of the guest
		}
		return steadyISN(in.port, in.n)
	}
	peers := map[uint16]*steadyPeer{}
	got, acked := map[uint16]uint32{}, map[uint16]uint32{} // how far the peer has the data, and what it knows to be acknowledged
	var log []input
	var what []string
	sent, left := 0, 0
	take := func(res compare.Result, err error) {
		if err != nil {
			wrong = err.Error()
		}
		if res.Diverged {
			wrong += fmt.Sprintf("a checkpoint is asked for: %v, %v; ", res.Reason, res.Flow)
		}
		for _, f := range res.Release {
			var k packet.Packet
			if k.Parse(f.Data); !k.IsTCP() {
				left++
				continue
			}
			h := k.TCP()
			port, end := h.DstPort(), h.Seq()+uint32(len(h.Payload()))
			if h.Flags()&(packet.SYN|packet.FIN) != 0 {
				end++
			}
			c := peers[port]
			from := steadyISN(port, c.nth)
			if h.Flags()&packet.SYN != 0 {
				c.open = true
			} else if h.Seq()-from > got[port] && h.Flags()&packet.RST == 0 && len(h.Payload()) > 0 {
				wrong += fmt.Sprintf("%d leaves before %d; ", h.Seq()-from, got[port])
			}
			got[port] = max(got[port], end-from)
			c.gone = c.gone || h.Flags()&packet.RST != 0
			if h.Flags()&packet.ACK != 0 {
				acked[port] = max(acked[port], h.Ack())
			}
		}
	}
	type said struct {
		frame []byte // nil: the marker of epoch
		epoch uint64
	}
	var stream []said
	const none, marked, received = 0, 1, 2
	step, epoch := received, uint64(0)
	var mark steadyGuest
	take(compare.Result{}, e.Mark(0))
	take(e.SecondaryMark(0))
	take(compare.Result{}, e.Loaded(0))
	step = none
	note := func(format string, a ...any) { what = append(what, fmt.Sprintf(format, a...)) }
	primary := func() {
		in := log[p.next]
		p.next++
		for _, f := range p.take(in, primarys) {
			if in.kind == inputAsk {
				sent++
			}
			take(e.Primary(compare.Frame{Data: f}, now), nil)
		}
		note("P%d", p.next)
	}
	secondary := func() {
		in := log[s.next]
		s.next++
		for _, f := range s.take(in, secondarys) {
			stream = append(stream, said{frame: f})
		}
		note("S%d", s.next)
	}
	deliver := func() {
		m := stream[0]
		stream = stream[1:]
		if m.frame == nil {
			note("marker")
			take(e.SecondaryMark(m.epoch))
			return
		}
		note("s")
		take(e.Secondary(compare.Frame{Data: m.frame}, now), nil)
	}
	load := func() {
		s = steadyGuest{conns: maps.Clone(mark.conns), next: mark.next, counter: mark.counter, cut: s.cut, loses: s.loses, idle: s.idle}
		if stream = append(stream, said{epoch: epoch}); !cfg.Marks {
			stream = nil // a connection of its own for each epoch
			take(compare.Result{}, e.Loaded(epoch))
		}
		step = none
		note("load")
	}
	resend := func(port uint16) (in input) {
		c := peers[port]
		in = input{kind: inputResend, port: port}
		for _, d := range c.data {
			if d.at+uint32(d.n) > acked[port] {
				in.all = append(in.all, d)
			}
		}
		return in
	}
	come := func() {
		in := input{kind: inputKind(r.IntN(int(inputs))), port: uint16(1 + r.IntN(4)), n: 1 + r.IntN(9), m: r.IntN(30)}
		c := peers[in.port]
		switch in.kind {
		case inputSYN, inputDial:
			switch {
			case c == nil:
				in.n = 0
			case c.gone || c.closed && c.closing && !c.over && c.sawAll(got[in.port], acked[in.port], p.conns[in.port]):
				in.n = c.nth + 1
			default:
				return
			}
			peers[in.port] = &steadyPeer{dialed: in.kind == inputDial, nth: in.n}
			got[in.port], acked[in.port] = 0, 0
		case inputAsk:
			in.port, in.n = 1000+uint16(r.IntN(2)), len(log)
		default:
			if c == nil || c.over {
				return
			}
			if lossy && (in.kind == inputFIN || in.kind == inputClose || in.kind == inputReset) {
				in.kind = inputResend // a guest that lacks data goes on otherwise
			}
			switch {
			case in.kind == inputAgain:
				if c.dialed || c.acked {
					return
				}
			case !c.open:
				return
			case c.dialed && !c.acked:
				in.kind = inputDialed
			case in.kind == inputDialed:
				return
			}
			if c.closed && c.closing && (in.kind == inputLife || in.kind == inputRepeat) {
				return // it is over
			}
			c.acked = c.acked || in.kind != inputAgain
			switch in.kind {
			case inputData:
				if c.closed {
					return
				}
				in.at = 501 + 1000*uint32(c.nth) + c.sent
				c.sent += uint32(in.n)
				c.data = append(c.data, in)
			case inputResend:
				if in = resend(in.port); len(in.all) == 0 {
					return
				}
			case inputFIN:
				if c.closed {
					return
				}
				c.closed = true
				c.sent++
			case inputClose:
				if c.closing {
					return
				}
				c.closing = true
			case inputReset:
				c.over = true
			}
		}
		log = append(log, in)
		note("%d:%v", len(log), in)
	}
	slow := r.IntN(3) // how the secondary's guest keeps up
	for range 150 {
		now = now.Add(time.Duration(r.IntN(8)) * time.Millisecond)
		if d := e.Deadline(); !d.IsZero() && !now.Before(d) {
			take(e.Tick(now), nil)
		}
		switch x := r.IntN(12); {
		case x < 3:
			come()
		case x < 6:
			if p.next < len(log) {
				primary()
			}
		case x < 8 || x < 9 && slow == 0:
			if s.next < len(log) {
				secondary()
			}
		case x < 10 || x < 11 && slow == 1:
			if len(stream) > 0 {
				deliver()
			}
		case step == none && chance(3):
			epoch++
			take(compare.Result{}, e.Mark(epoch))
			mark, step = p.clone(), marked
			note("mark")
		case step == marked:
			note("received")
			step = received
			take(e.Received(epoch))
		case step == received:
			load()
		}
	}
	if step == marked {
		take(e.Received(epoch))
		step = received
	}
	if step == received {
		load()
	}
	p.loses = func() bool { return false }
	s.loses = p.loses
	drain := func() {
		for p.next < len(log) {
			primary()
		}
		for s.next < len(log) {
			secondary()
		}
		for len(stream) > 0 {
			deliver()
		}
	}
	drain()
	if timers { // otherwise it has given all of them
		for _, f := range p.pay() {
			take(e.Primary(compare.Frame{Data: f}, now), nil)
		}
	}
	for _, f := range s.pay() {
		stream = append(stream, said{frame: f})
	}
	drain()
	if lossy {
		for _, port := range slices.Sorted(maps.Keys(p.conns)) {
			if in := resend(port); len(in.all) > 0 {
				log = append(log, in)
			}
		}
		drain()
	}
	for range 60 {
		now = now.Add(5 * time.Millisecond)
		take(e.Tick(now), nil)
	}
	if st := e.Stats(); st.Held != 0 {
		wrong += fmt.Sprintf("%d are held; ", st.Held)
	}
	if wrong != "" {
		wrong += "held: " + show(e.Failover()) + fmt.Sprintf("%+v", cfg.Marks)
	}
	if left != sent {
		wrong += fmt.Sprintf("%d of %d datagrams have left; ", left, sent)
	}
	for port, c := range p.conns {
		if got[port] != c.snd-c.isn || peers[port].acked && (acked[port] != c.rcv || c.rcv != 501+1000*uint32(peers[port].nth)+peers[port].sent) {
			wrong += fmt.Sprintf("%d: the peer has %d of %d, and %d of its own are acknowledged to it, of %d; ", port, got[port], c.snd-c.isn, acked[port], c.rcv)
		}
	}
	if wrong != "" {
		wrong += fmt.Sprint(what)
	}
	return wrong
}
