package protect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/vmstate"
)

var (
	serverMAC, clientMAC   = []byte{0x52, 0x54, 0, 0, 0, 1}, []byte{0x52, 0x54, 0, 0, 0, 2}
	serverAddr, clientAddr = []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}
)

// A segment is a TCP segment between the client and port 80 of the server.
type segment struct {
	port     uint16 // the client's
	seq, ack uint32
	flags    uint8
	data     string
}

func (s segment) frame(toServer bool) []byte {
	b := make([]byte, packet.EthernetLen+packet.IPv4Len+packet.TCPLen, 128)
	src, dst, ports := serverAddr, clientAddr, uint32(80)<<16|uint32(s.port)
	copy(b, clientMAC)
	copy(b[6:], serverMAC)
	if toServer {
		src, dst, ports = clientAddr, serverAddr, uint32(s.port)<<16|80
		copy(b, serverMAC)
		copy(b[6:], clientMAC)
	}
	binary.BigEndian.PutUint16(b[12:], packet.TypeIPv4)
	ip := b[packet.EthernetLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, packet.ProtoTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(packet.IPv4Len+packet.TCPLen+len(s.data)))
	copy(ip[12:], src)
	copy(ip[16:], dst)
	h := ip[packet.IPv4Len:]
	binary.BigEndian.PutUint32(h, ports)
	binary.BigEndian.PutUint32(h[4:], s.seq)
	binary.BigEndian.PutUint32(h[8:], s.ack)
	h[12], h[13] = 5<<4, s.flags
	binary.BigEndian.PutUint16(h[14:], 65000)
	b = append(b, s.data...)
	var p packet.Packet
	p.Parse(b)
	p.TCP().SetChecksum(p.TCPChecksum())
	return b
}

// parse reads a segment between the two.
func parse(frame []byte, toServer bool) (s segment, ok bool) {
	var p packet.Packet
	p.Parse(frame)
	if !p.IsTCP() {
		return s, false
	}
	ip := frame[packet.EthernetLen:]
	h := ip[packet.IPv4Len:]
	ports := binary.BigEndian.Uint32(h)
	s.port = uint16(ports)
	if toServer {
		s.port = uint16(ports >> 16)
	}
	s.seq, s.ack, s.flags = binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:]), h[13]
	s.data = string(h[packet.TCPLen : binary.BigEndian.Uint16(ip[2:])-uint16(packet.IPv4Len)])
	return s, bytes.Equal(ip[12:16], clientAddr) == toServer
}

func arp(op byte, mac, addr, of []byte) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), mac...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	b = append(append(b, mac...), addr...)
	return append(append(b, make([]byte, 6)...), of...)
}

// A server is a guest that counts what it is told on each connection, and echoes it
// with the count. Each host's picks other sequence numbers for the connections that
// are opened to it, as guests do.
type server struct {
	Guest
	isn uint32 // of the next connection
	nic *Proxy

	composes bool // its packets are gathered in the Proxy's memory

	conns [8]service
}

type service struct {
	port      uint32
	next, got uint32 // the sequence numbers that come next: of the server, and of the client
	count     uint32
	last      [16]byte // that was said last
}

func (g *server) Register(reg *vmstate.Registry) error {
	if err := g.Guest.Register(reg); err != nil {
		return err
	}
	return reg.Register(vmstate.Entry{Name: "test-server", Version: 1, MinVersion: 1}, g)
}

func (g *server) VMState(f *vmstate.Fields) {
	for i := range g.conns {
		c := &g.conns[i]
		f.Uint32("port", &c.port)
		f.Uint32("next", &c.next)
		f.Uint32("got", &c.got)
		f.Uint32("count", &c.count)
		f.Bytes("last", c.last[:])
	}
}

// receive takes a frame for the guest, as its NIC does.
func (g *server) receive(p []byte) error {
	if len(p) > 40 && p[12] == 8 && p[13] == 6 && bytes.Equal(p[38:42], serverAddr) {
		return g.send(arp(2, serverMAC, serverAddr, clientAddr))
	}
	s, ok := parse(p, true)
	if !ok {
		return nil
	}
	c := g.conn(uint32(s.port), s.flags&packet.SYN != 0)
	if c == nil {
		return nil
	}
	reply := segment{port: s.port, flags: packet.ACK}
	switch {
	case s.flags&packet.SYN != 0:
		if c.count == 0 && c.got != s.seq+1 {
			g.isn += 64000
			c.next, c.got = g.isn+1, s.seq+1
		}
		reply.flags |= packet.SYN
		reply.seq, reply.ack = c.next-1, c.got
		return g.send(reply.frame(false))
	case s.data == "":
		return nil
	case s.seq == c.got && s.ack == c.next:
		c.got += uint32(len(s.data))
		c.count++
		copy(c.last[:], fmt.Sprintf("%-16s", fmt.Sprint(c.count, " ", s.data)))
		c.next += uint32(len(c.last))
	}
	reply.flags |= packet.PSH
	reply.seq, reply.ack, reply.data = c.next-uint32(len(c.last)), c.got, string(c.last[:])
	return g.send(reply.frame(false))
}

func (g *server) conn(port uint32, opens bool) *service {
	for i := range g.conns {
		c := &g.conns[i]
		if c.port == port || c.port == 0 && opens {
			c.port = port
			return c
		}
	}
	return nil
}

// send hands a frame to the NIC on another goroutine: receive, which the NIC calls, sends too, and
// may not call the NIC from within.
func (g *server) send(p []byte) error {
	if g.composes {
		go g.nic.ComposePacket(len(p), func(b []byte) bool { return copy(b, p) == len(b) })
	} else {
		go g.nic.WritePacket(p)
	}
	return nil
}

// A hub is the network of both hosts and of the client.
type hub struct {
	mu    sync.Mutex
	plugs map[string]*plug // by host
	got   []heard
	more  chan struct{} // closed and replaced when something has come
}

func newHub() *hub { return &hub{plugs: map[string]*plug{}, more: make(chan struct{})} }

// protected starts a server on host a, and host b, and waits until b follows. change may change
// the proxies of both; nil: it does not.
func (h *hub) protected(w *world, change func(*ProxyConfig)) (a, b *host) {
	b = h.serving(w, "b", false, change)
	a = h.serving(w, "a", true, change)
	a.is(Protected)
	b.is(Following)
	return a, b
}

type heard struct {
	host  string
	frame []byte
}

// A plug is a host's end.
type plug struct {
	hub    *hub
	host   *host
	name   string
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func (h *hub) plug(name string) *plug {
	p := &plug{hub: h, name: name, in: make(chan []byte, 64), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.plugs[name] = p
	return p
}

func (p *plug) ReadPacket() ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-p.closed:
		return nil, errDead
	}
}

func (p *plug) WritePacket(b []byte) error {
	if p.host != nil && p.host.killed.Load() {
		return errDead
	}
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	p.hub.got = append(p.hub.got, heard{p.name, bytes.Clone(b)})
	close(p.hub.more)
	p.hub.more = make(chan struct{})
	return nil
}

func (p *plug) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

// send carries a frame of the client to all hosts, as a switch does that knows none.
func (h *hub) send(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.plugs {
		select {
		case p.in <- bytes.Clone(b):
		default:
		}
	}
}

// ask says something, again and again, until an answer has come that will do.
func (h *hub) ask(t *testing.T, what string, frame []byte, will func(heard) bool) {
	t.Helper()
	h.mu.Lock()
	h.got = nil
	h.mu.Unlock()
	for range 200 {
		h.send(frame)
		for timer := time.After(200 * time.Millisecond); ; {
			h.mu.Lock()
			got, more := h.got, h.more
			h.got = nil
			h.mu.Unlock()
			for _, x := range got {
				if will(x) {
					return
				}
			}
			select {
			case <-more:
				continue
			case <-timer:
			}
			break
		}
	}
	t.Fatalf("%s: no answer", what)
}

// A caller is the client's end of a connection.
type caller struct {
	t         *testing.T
	h         *hub
	port      uint16
	seq, next uint32 // its own, and the server's as it knows them
	count     int
	said      map[uint32]string // by the server's numbers
}

func (h *hub) dial(t *testing.T, port uint16) *caller {
	t.Helper()
	c := &caller{t: t, h: h, port: port, seq: uint32(port) << 8, said: map[uint32]string{}}
	h.ask(t, "open", segment{port: port, seq: c.seq, flags: packet.SYN}.frame(true), func(x heard) bool {
		s, ok := parse(x.frame, false)
		c.next = s.seq + 1
		return ok && s.port == port && s.flags&packet.SYN != 0
	})
	c.seq++
	h.send(segment{port: port, seq: c.seq, ack: c.next, flags: packet.ACK}.frame(true))
	return c
}

// say says something on the connection, and wants its echo, with all numbers as this
// end knows them.
func (c *caller) say(data string) {
	c.t.Helper()
	c.count++
	want := segment{
		port: c.port, seq: c.next, ack: c.seq + uint32(len(data)), flags: packet.ACK | packet.PSH,
		data: fmt.Sprintf("%-16s", fmt.Sprint(c.count, " ", data)),
	}
	c.h.ask(c.t, data, segment{port: c.port, seq: c.seq, ack: c.next, flags: packet.ACK | packet.PSH, data: data}.frame(true), func(x heard) bool {
		s, ok := parse(x.frame, false)
		switch {
		case !ok || s.port != c.port || s.data == "":
			return false
		case s.seq != want.seq && c.said[s.seq] == s.data: // said again, which networks do
			return false
		case s.flags&packet.RST != 0 || s != want:
			c.t.Errorf("%s answers %+v, not %+v", x.host, s, want)
		}
		return true
	})
	c.said[want.seq] = want.data
	c.seq, c.next = want.ack, want.seq+uint32(len(want.data))
}

// serving boots a host whose guest is a server behind a Proxy. The NIC of host a composes
// packets, that of b writes them.
func (h *hub) serving(w *world, name string, start bool, change func(*ProxyConfig)) *host {
	w.t.Helper()
	p := h.plug(name)
	x := w.boot(name, start, func(c *Config) {
		g := &server{Guest: c.Guest, isn: uint32(len(name)) * 77777 * uint32(name[0]), composes: name == "a"}
		cfg := ProxyConfig{Uplink: p, Deliver: func(p []byte) error { return g.receive(p) }}
		if change != nil {
			change(&cfg)
		}
		n, err := NewProxy(cfg)
		if err != nil {
			w.t.Fatal(err)
		}
		g.nic = n
		c.Guest, c.Network = g, []Network{n}
	})
	p.hub.mu.Lock()
	p.host = x
	p.hub.mu.Unlock()
	return x
}
