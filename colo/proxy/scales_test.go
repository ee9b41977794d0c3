package proxy_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A line is a guest that goes from host to host: it is protected, its host dies, and it is
// protected again where it went on.
type line struct {
	t          *testing.T
	p          *proxy.Primary
	s          *proxy.Secondary
	pnet, snet recordedWire
	preg, sreg *vmstate.Registry
	pran, sran chan error // how Run has ended
	conn       net.Conn
	served     chan error
	epoch      uint64
}

func newLine(t *testing.T) *line {
	l := &line{t: t}
	l.lead(proxy.NewPrimary(proxy.PrimaryConfig{VM: &guest{t: t}, Deliver: new(recorder).take}))
	return l
}

func (l *line) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// lead has p be the guest's side from now on.
func (l *line) lead(p *proxy.Primary) {
	l.t.Helper()
	l.p, l.pnet, l.preg, l.pran = p, recordedWire{newWire(), new(recorder)}, new(vmstate.Registry), make(chan error, 1)
	l.must(l.preg.Register(p.Entry(0), p))
	ran, pnet := l.pran, l.pnet
	go func() { ran <- p.Run(l.t.Context(), pnet) }()
}

// protect gives the guest another host, and makes the first checkpoint.
func (l *line) protect() {
	l.t.Helper()
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: &guest{t: l.t, paused: true}, Deliver: new(recorder).take})
	l.s, l.snet, l.sreg, l.sran, l.epoch = s, recordedWire{newWire(), new(recorder)}, new(vmstate.Registry), make(chan error, 1), 0
	l.must(l.sreg.Register(s.Entry(0), s))
	ran, snet, served := l.sran, l.snet, make(chan error, 2)
	go func() { ran <- s.Run(l.t.Context(), snet) }()
	a, b := net.Pipe()
	l.conn, l.served = a, served
	p := l.p
	go func() { served <- p.Serve(l.t.Context(), a) }()
	go func() { served <- s.Serve(l.t.Context(), b) }()
	l.must(p.Connected(l.t.Context()))
	l.must(s.Connected(l.t.Context()))
	l.checkpoint()
}

func (l *line) mark() []byte {
	l.t.Helper()
	ctx := l.t.Context()
	l.must(l.s.Pause(ctx))
	l.must(l.p.Pause(ctx))
	l.must(l.p.Mark(l.epoch))
	var b bytes.Buffer
	q := qemufile.NewWriter(&b)
	l.must(l.preg.SaveDevices(q))
	vmstate.PutEOF(q)
	l.must(q.Flush())
	l.must(l.p.Resume(ctx))
	return b.Bytes()
}

func (l *line) checkpoint() {
	l.t.Helper()
	state := l.mark()
	l.must(l.sreg.LoadDevices(state, nil))
	l.must(l.p.Received(l.epoch))
	l.must(l.sreg.Commit())
	l.must(l.s.Commit(l.epoch))
	l.must(l.s.Resume(l.t.Context()))
	l.must(l.s.Resumed(l.epoch))
	l.must(l.p.Loaded(l.epoch))
	l.epoch++
	synctest.Wait()
}

// fail has the host of the guest die, and the other go on.
func (l *line) fail() {
	l.t.Helper()
	l.pnet.Close()
	<-l.pran
	l.conn.Close()
	<-l.served
	<-l.served
	l.p = nil
	l.must(l.s.Pause(l.t.Context()))
	l.must(l.s.Failover())
	l.must(l.s.Resume(l.t.Context()))
	synctest.Wait()
}

// promote has the host that goes on be that of a primary.
func (l *line) promote() {
	l.t.Helper()
	l.must(l.s.Pause(l.t.Context()))
	l.must(l.s.Drain(l.t.Context()))
	l.snet.Close()
	<-l.sran
	p, left := l.s.Promote(proxy.PrimaryConfig{})
	if left != 0 {
		l.t.Errorf("%d connections are left", left)
	}
	l.s = nil
	l.lead(p)
	l.must(p.Resume(l.t.Context()))
}

// end ends what runs.
func (l *line) end() {
	if l.conn != nil {
		l.conn.Close()
	}
	for _, x := range []struct {
		net recordedWire
		ran chan error
	}{{l.pnet, l.pran}, {l.snet, l.sran}} {
		if x.ran != nil {
			x.net.Close()
		}
	}
}

// say has a guest send a packet, that of the primary if there is one, and the other too if both.
func (l *line) say(p []byte, both bool) {
	l.t.Helper()
	if l.p == nil {
		l.must(l.s.WritePacket(p))
	} else {
		l.must(l.p.WritePacket(p))
		if both && l.s != nil {
			l.must(l.s.WritePacket(p))
		}
	}
	synctest.Wait()
}

// tell brings a packet from the network.
func (l *line) tell(p []byte) {
	if l.p == nil {
		l.snet.in <- p
	} else {
		l.pnet.in <- p
	}
	synctest.Wait()
}

const (
	clientISN = 500
	guestISN  = 1000
	unknown   = 255 // no scale
)

// A call is a connection of the guest, which the guest or the client opens.
type call struct {
	port    uint16
	byGuest bool
	v6      bool
	scale   byte // the guest's; unknown: it does not scale
	peer    byte // the client's
}

func wscale(shift byte) string {
	if shift == unknown {
		return ""
	}
	return string([]byte{packet.OptWScale, 3, shift, packet.OptNop})
}

func (c *call) packet(toGuest bool, seq, ack uint32, flags byte, win uint16, options, data string) []byte {
	f := segment(toGuest, seq, ack, flags, options+data)
	if c.v6 {
		h := append(append([]byte{0x60, 0, 0, 0, 0, byte(len(f) - 34), packet.ProtoTCP, 64}, bytes.Repeat(f[26:30], 4)...), bytes.Repeat(f[30:34], 4)...)
		f = append(append(append(f[:12:12], 0x86, 0xdd), h...), f[34:]...)
	}
	var p packet.Packet
	p.Parse(f)
	h := p.TCP()
	at := 2
	if toGuest {
		at = 0
	}
	binary.BigEndian.PutUint16(h[at:], c.port)
	h[12] = byte(5+len(options)/4) << 4
	binary.BigEndian.PutUint16(h[14:], win)
	h.SetChecksum(p.TCPChecksum())
	return f
}

// open opens the connection, of both guests if both.
func (c *call) open(l *line, both bool) {
	l.t.Helper()
	if c.byGuest {
		l.say(c.packet(false, guestISN, 0, packet.SYN, 900, wscale(c.scale), ""), both)
		l.tell(c.packet(true, clientISN, guestISN+1, packet.SYN|packet.ACK, 900, wscale(c.peer), ""))
		l.say(c.packet(false, guestISN+1, clientISN+1, packet.ACK, 900, "", ""), both)
		return
	}
	l.tell(c.packet(true, clientISN, 0, packet.SYN, 900, wscale(c.peer), ""))
	l.say(c.packet(false, guestISN, clientISN+1, packet.SYN|packet.ACK, 900, wscale(c.scale), ""), both)
	l.tell(c.packet(true, clientISN+1, guestISN+1, packet.ACK, 900, "", ""))
}

// want checks what leaves of a segment with which the primary's guest acknowledges more than
// the other: it has what that one acknowledges, and a window that ends where those of both
// have room, if the shift of it is known, and waits otherwise. A false shift gives another.
func (c *call) want(l *line, why string, shift byte) {
	l.t.Helper()
	l.pnet.drain()
	l.must(l.s.WritePacket(c.packet(false, guestISN+1, clientISN+101, push, 1000, "", "data")))
	synctest.Wait()
	l.must(l.p.WritePacket(c.packet(false, guestISN+1, clientISN+201, push, 990, "", "data")))
	if shift == unknown {
		l.pnet.want(l.t, why+": it is not known, and so the segment waits")
		return
	}
	edge := min(201+990<<shift, 101+1000<<shift)
	win := uint16((edge - 101) >> shift)
	l.pnet.want(l.t, why, c.packet(false, guestISN+1, clientISN+101, push, win, "", "data"))
}

// drain forgets what has come.
func (r *recorder) drain() {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = nil
}

// A connection may begin at any time in the life of a guest that goes from host to host. Once the
// guest is protected again, what leaves on it has a window that neither guest takes back.
func TestAWindowIsLoweredOnConnectionsThatOutlivedFailovers(t *testing.T) {
	again := func(l *line) { l.fail(); l.promote(); l.protect() }
	moments := []struct {
		when  string
		until func(l *line, open func(both bool))
	}{
		{"before there was a session", func(l *line, open func(bool)) { open(false); l.protect() }},
		{"between two checkpoints", func(l *line, open func(bool)) { l.protect(); open(true); l.checkpoint() }},
		{"since the last checkpoint", func(l *line, open func(bool)) { l.protect(); open(true) }},
		{"and of several checkpoints", func(l *line, open func(bool)) {
			l.protect()
			open(true)
			l.checkpoint()
			l.checkpoint()
		}},
		{"on the host that had taken over", func(l *line, open func(bool)) {
			l.protect()
			l.fail()
			open(false)
			l.promote()
			l.protect()
		}},
		{"on that host when it had been promoted", func(l *line, open func(bool)) {
			l.protect()
			l.fail()
			l.promote()
			open(false)
			l.protect()
		}},
		{"when that guest was protected", func(l *line, open func(bool)) { l.protect(); again(l); open(true) }},
	}
	for _, m := range moments {
		for _, c := range []call{
			{scale: 7, peer: 2}, {scale: 7, peer: 2, byGuest: true}, {scale: 14, peer: 0, v6: true}, {scale: 3, peer: 9, byGuest: true, v6: true},
			{scale: unknown, peer: unknown}, {scale: 7, peer: unknown, byGuest: true}, {scale: unknown, peer: 7, byGuest: true},
		} {
			shift := c.scale
			if c.scale == unknown || c.peer == unknown {
				shift = 0
			}
			for failovers := range 4 {
				c.port = 40000
				t.Run(fmt.Sprintf("%s/guest calls %t/IPv6 %t/scales %d and %d/%d failovers later", m.when, c.byGuest, c.v6, c.scale, c.peer, failovers), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newLine(t)
						defer l.end()
						m.until(l, func(both bool) { c.open(l, both) })
						for range failovers {
							again(l)
						}
						c.want(l, "", shift)
					})
				})
			}
		}
	}
}

// What a guest has begun that is no more counts for none, nor what came to be known by a
// checkpoint that was not committed.
func TestTheScaleOfAConnectionThatTheGuestDoesNotHaveIsUnknown(t *testing.T) {
	try := func(why string, shift byte, c call, course func(l *line)) {
		t.Run(why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLine(t)
				defer l.end()
				l.protect()
				course(l)
				l.promote()
				l.protect()
				c.want(l, "", shift)
			})
		})
	}
	alone := func(l *line, c call) { // the secondary's guest alone opens it
		p := l.p
		l.p = nil
		l.say(c.packet(false, guestISN, clientISN+1, packet.SYN|packet.ACK, 900, wscale(c.scale), ""), false)
		l.p = p
	}
	c, d := call{port: 1, scale: 7, peer: 7}, call{port: 1, scale: 2, peer: 7}
	try("it was never seen to begin", unknown, c, func(l *line) { l.fail() })
	try("a guest that was rolled back had it", unknown, c, func(l *line) { alone(l, c); l.checkpoint(); l.fail() })
	try("and the primary's another with those addresses", 2, d, func(l *line) {
		d.open(l, false)
		alone(l, c)
		l.checkpoint()
		l.fail()
	})
	try("the guest that goes on has begun another since", 7, c, func(l *line) {
		d.open(l, false)
		l.checkpoint()
		alone(l, c)
		l.fail()
	})
	try("that host has died in a checkpoint that was not whole", unknown, c, func(l *line) {
		c.open(l, false)
		state := l.mark()
		l.must(l.sreg.LoadDevices(state, nil))
		l.sreg.Rollback()
		l.fail()
	})
	try("it came with a checkpoint that was", 7, c, func(l *line) {
		c.open(l, false)
		state := l.mark()
		l.must(l.sreg.LoadDevices(state, nil))
		l.pnet.Close() // the host is dead
		l.must(l.sreg.Commit())
		l.must(l.s.Commit(l.epoch))
		l.fail()
	})
	try("the host that has taken over was told of another", 2, d, func(l *line) {
		c.open(l, true)
		l.checkpoint()
		l.fail()
		d.open(l, false)
	})
	e := call{port: 1, scale: 5, peer: unknown, byGuest: true}
	try("by its own guest, to which the client does not scale", 0, e, func(l *line) {
		c.open(l, true)
		l.checkpoint()
		l.fail()
		e.open(l, false)
	})
	try("a client has not answered", unknown, c, func(l *line) {
		c.open(l, true)
		l.checkpoint()
		l.fail()
		l.say(c.packet(false, guestISN, 0, packet.SYN, 900, wscale(7), ""), false)
	})
	try("a client has answered another SYN", unknown, c, func(l *line) {
		l.fail()
		l.say(c.packet(false, guestISN, 0, packet.SYN, 900, wscale(7), ""), false)
		l.tell(c.packet(true, clientISN, guestISN+2, packet.SYN|packet.ACK, 900, wscale(7), ""))
	})
	damaged := c.packet(true, clientISN, guestISN+1, packet.SYN|packet.ACK, 900, "\x01\x01\x01\x01", "")
	damaged[len(damaged)-1] ^= 0x10
	asks := c.packet(false, guestISN, 0, packet.SYN, 900, wscale(7), "")
	try("the client's answer was damaged on its way", unknown, c, func(l *line) {
		l.fail()
		l.say(asks, false)
		l.tell(damaged)
	})
	try("and where the primary's guest had called", unknown, c, func(l *line) {
		l.say(asks, true)
		l.tell(damaged)
		l.checkpoint()
		l.fail()
	})
	for why, version := range map[string]uint32{"it came with a section of before": 2, "it came with one of before that": 1, "no section came": 0} {
		try(why, unknown, c, func(l *line) {
			c.open(l, true)
			l.checkpoint()
			l.must(l.s.Pause(l.t.Context()))
			if version > 0 {
				commitState(l.t, l.s, sectionOf(l.t, oldEntry(version), oldSection{}))
			}
			l.must(l.s.Commit(l.epoch))
			l.must(l.s.Resume(l.t.Context()))
			l.fail()
		})
	}
}
