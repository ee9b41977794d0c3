package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nic  = 1
	mtu  = 1500
	port = 7000

	// maxRTO bounds for how long a stack waits for an acknowledgment before it sends again.
	// Left alone it waits for the round trips that it has measured, and twice as long
	// with each time that nothing comes back. Checkpoints are part of those round trips: where
	// the machine has no time for this test they take ten seconds each, and stacks come
	// out of them that wait for half a minute at first. Whoever stands still for longer
	// than a few of these and a checkpoint does so for another reason. maxRetries keeps a
	// stack from giving up meanwhile.
	maxRTO     = 5 * time.Second
	maxRetries = 10000
)

// addresses of the guest and of its client, of either protocol.
var (
	guest4, client4 = tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), tcpip.AddrFrom4([4]byte{10, 0, 0, 2})
	guest6, client6 = tcpip.AddrFrom16([16]byte{0xfd, 15: 1}), tcpip.AddrFrom16([16]byte{0xfd, 15: 2})
)

// A cable is a stack's link. It is no part of an image: another stack has another
// one.
type cable struct{ *channel.Endpoint }

func (*cable) StateTypeName() string                   { return "netstack.cable" }
func (*cable) StateFields() []string                   { return nil }
func (*cable) StateSave(state.Sink)                    {}
func (*cable) StateLoad(context.Context, state.Source) {}

// A clock of a guest tells the real time. In a copy of the guest it does too, as where the host
// sets the clock right after a copy.
type clock struct{}

var began = time.Now()

func (*clock) Now() time.Time { return time.Now() }
func (*clock) NowMonotonic() tcpip.MonotonicTime {
	return tcpip.MonotonicTime{}.Add(time.Since(began))
}
func (*clock) AfterFunc(d time.Duration, f func()) tcpip.Timer { return alarm{time.AfterFunc(d, f)} }

type alarm struct{ *time.Timer }

func (a alarm) Reset(d time.Duration) { a.Timer.Reset(d) }

func (*clock) StateTypeName() string                   { return "netstack.clock" }
func (*clock) StateFields() []string                   { return nil }
func (*clock) StateSave(state.Sink)                    {}
func (*clock) StateLoad(context.Context, state.Source) {}

// newStack returns a stack behind a cable, with an address of each protocol. With gso it
// leaves checksums, and the cutting of segments, to its device.
func newStack(a4, a6 tcpip.Address, gso bool) (*stack.Stack, *cable) {
	s := stack.New(stack.Options{
		Clock:              new(clock),
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	s.SetAllowConnectedOnSave(true)
	rto, retries := tcpip.TCPMaxRTOOption(maxRTO), tcpip.TCPMaxRetriesOption(maxRetries)
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &rto))
	must(s.SetTransportProtocolOption(tcp.ProtocolNumber, &retries))
	link := &cable{channel.New(1<<16, mtu, "")}
	link.LinkEPCapabilities |= stack.CapabilitySaveRestore
	if gso {
		link.SupportedGSOKind = stack.HostGSOSupported
	}
	must(s.CreateNIC(nic, link))
	for _, a := range []struct {
		proto tcpip.NetworkProtocolNumber
		addr  tcpip.Address
		bits  int
	}{{header.IPv4ProtocolNumber, a4, 24}, {header.IPv6ProtocolNumber, a6, 64}} {
		must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: a.proto, AddressWithPrefix: tcpip.AddressWithPrefix{Address: a.addr, PrefixLen: a.bits},
		}, stack.AddressProperties{}))
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	return s, link
}

func must(err tcpip.Error) {
	if err != nil {
		panic(err.String())
	}
}

// An image is all of a guest that a checkpoint carries: its stack, and its program.
type image struct {
	stack   *stack.Stack
	program *program
}

func (*image) StateTypeName() string { return "netstack.image" }
func (*image) StateFields() []string { return []string{"stack", "program"} }
func (i *image) StateSave(s state.Sink) {
	s.Save(0, &i.stack)
	s.Save(1, &i.program)
}
func (i *image) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &i.stack)
	s.Load(1, &i.program)
}

// A program is a server that answers "down N SEED" on each connection, and takes the N bytes
// that follow "up N SEED": it answers these with the first receiptLen bytes of the answer of
// SEED, or of another seed if some were wrong. It does one thing at a time, so that it can be
// stopped anywhere and copied.
type program struct {
	queue  *waiter.Queue
	listen tcpip.Endpoint
	conns  []*conn
}

type conn struct {
	queue *waiter.Queue
	ep    tcpip.Endpoint
	line  []byte
	seed  uint64
	at    uint64 // of the answer
	left  uint64
	shut  bool
	rest  uint64 // to come of what a client sends
	wrong bool   // some of that was
}

const receiptLen = 16

func (*program) StateTypeName() string { return "netstack.program" }
func (*program) StateFields() []string { return []string{"queue", "listen", "conns"} }
func (p *program) StateSave(s state.Sink) {
	s.Save(0, &p.queue)
	s.Save(1, &p.listen)
	s.Save(2, &p.conns)
}
func (p *program) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &p.queue)
	s.Load(1, &p.listen)
	s.Load(2, &p.conns)
}

func (*conn) StateTypeName() string { return "netstack.conn" }
func (*conn) StateFields() []string {
	return []string{"queue", "ep", "line", "seed", "at", "left", "shut", "rest", "wrong"}
}
func (c *conn) StateSave(s state.Sink) {
	s.Save(0, &c.queue)
	s.Save(1, &c.ep)
	s.Save(2, &c.line)
	s.Save(3, &c.seed)
	s.Save(4, &c.at)
	s.Save(5, &c.left)
	s.Save(6, &c.shut)
	s.Save(7, &c.rest)
	s.Save(8, &c.wrong)
}
func (c *conn) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &c.queue)
	s.Load(1, &c.ep)
	s.Load(2, &c.line)
	s.Load(3, &c.seed)
	s.Load(4, &c.at)
	s.Load(5, &c.left)
	s.Load(6, &c.shut)
	s.Load(7, &c.rest)
	s.Load(8, &c.wrong)
}

func init() {
	state.Register((*cable)(nil))
	state.Register((*clock)(nil))
	state.Register((*image)(nil))
	state.Register((*program)(nil))
	state.Register((*conn)(nil))
}

// answer is byte i of the answer of a seed.
func answer(seed, i uint64) byte {
	x := (seed + i/7) * 0x9e3779b97f4a7c15
	return byte(x>>56) ^ byte(i)
}

// step accepts, reads and writes as far as it can without waiting, and reports whether it did
// anything.
func (p *program) step() (did bool) {
	for {
		ep, q, err := p.listen.Accept(nil)
		if err != nil {
			break
		}
		p.conns = append(p.conns, &conn{queue: q, ep: ep})
		did = true
	}
	for _, c := range p.conns {
		did = c.step() || did
	}
	return did
}

func (c *conn) step() (did bool) {
	for c.left == 0 && !c.shut {
		var b bytes.Buffer
		w := tcpip.LimitedWriter{W: &b, N: int64(min(max(c.rest, 1), 4096))}
		_, err := c.ep.Read(&w, tcpip.ReadOptions{})
		if _, closed := err.(*tcpip.ErrClosedForReceive); closed {
			c.shut = true
			c.ep.Shutdown(tcpip.ShutdownWrite)
			return true
		}
		if err != nil || b.Len() == 0 {
			return did
		}
		did = true
		if c.rest > 0 {
			c.take(b.Bytes())
			continue
		}
		if c.line = append(c.line, b.Bytes()...); c.line[len(c.line)-1] == '\n' {
			fmt.Sscanf(string(c.line), "down %d %d", &c.left, &c.seed)
			fmt.Sscanf(string(c.line), "up %d %d", &c.rest, &c.seed)
			c.line, c.at = nil, 0
		}
	}
	for c.left > 0 {
		chunk := make([]byte, min(c.left, 4096))
		for i := range chunk {
			chunk[i] = answer(c.seed, c.at+uint64(i))
		}
		n, err := c.ep.Write(bytes.NewReader(chunk), tcpip.WriteOptions{})
		if err != nil || n == 0 {
			return did
		}
		did = true
		c.at += uint64(n)
		c.left -= uint64(n)
	}
	return did
}

// take looks at what a client sends behind "up".
func (c *conn) take(b []byte) {
	for i, v := range b {
		c.wrong = c.wrong || v != answer(c.seed, c.at+uint64(i))
	}
	c.at += uint64(len(b))
	if c.rest -= uint64(len(b)); c.rest > 0 {
		return
	}
	if c.wrong {
		c.seed = ^c.seed
	}
	c.at, c.left, c.wrong = 0, receiptLen, false
}

// A guest is a stack and its program, which can be paused, and become a copy of
// another one. It is a VM.
type guest struct {
	out func(frame []byte) // what it sends
	gso bool               // its stack leaves checksums and the cutting of segments to its device

	mu     sync.Mutex
	image  image
	link   *cable
	paused bool
	frozen bool // its stack is: not one that is new, or was restored
	copied bool // its stack was restored, and has not run since
	cancel context.CancelFunc
	group  *sync.WaitGroup
}

// newGuest returns a paused guest whose server listens, or will when it becomes
// another one's copy.
func newGuest(v6, gso bool) *guest {
	g := &guest{paused: true, gso: gso}
	s, link := newStack(guest4, guest6, gso)
	g.link = link
	proto := header.IPv4ProtocolNumber
	if v6 {
		proto = header.IPv6ProtocolNumber
	}
	q := new(waiter.Queue)
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, proto, q)
	must(err)
	must(ep.Bind(tcpip.FullAddress{Port: port}))
	must(ep.Listen(16))
	g.image = image{s, &program{queue: q, listen: ep}}
	return g
}

// vnet is the length of the virtio-net header that each frame begins with.
const vnet = packet.VNetMergeLen

// tagged has all stacks be in a VLAN. It is set before there are any, and not with gso.
var tagged bool

// frame puts a virtio-net header and an Ethernet header before an IP packet.
func frame(pkt *stack.PacketBuffer, toGuest bool) []byte {
	v := pkt.ToView()
	defer v.Release()
	p := v.AsSlice()
	f := make([]byte, vnet+packet.EthernetLen, vnet+packet.EthernetLen+len(p))
	e := f[vnet:]
	e[0], e[6] = 2, 2
	if toGuest {
		e[5], e[11] = 1, 2
	} else {
		e[5], e[11] = 2, 1
	}
	e[12] = 8
	if len(p) > 0 && p[0]>>4 == 6 {
		e[12], e[13] = 0x86, 0xdd
	}
	if tagged {
		f = append(f[:vnet+12], 0x81, 0, 0, 5, e[12], e[13])
	}
	if o := &pkt.GSOOptions; o.Type != stack.GSONone && o.NeedsCsum { // virtio 1.2 section 5.1.6
		l4 := packet.EthernetLen + o.L3HdrLen
		f[0] = packet.VNetNeedsCsum
		if pkt.Data().Size() > int(o.MSS) {
			f[1] = packet.GSOTCPv4
			if o.Type == stack.GSOTCPv6 {
				f[1] = packet.GSOTCPv6
			}
			binary.LittleEndian.PutUint16(f[2:], l4+uint16(len(pkt.TransportHeader().Slice())))
			binary.LittleEndian.PutUint16(f[4:], o.MSS)
		}
		binary.LittleEndian.PutUint16(f[6:], l4)
		binary.LittleEndian.PutUint16(f[8:], o.CsumOffset)
	}
	return append(f, p...)
}

// inject gives a frame to a stack, which looks at all checksums.
func inject(link *cable, f []byte) {
	f = bytes.Clone(f)
	if h := packet.VNetOf(f, vnet); h != nil {
		h.Complete(f[vnet:])
	}
	injectWhole(link, f)
}

// injectWhole gives a frame to a stack as it is. The stack keeps it.
func injectWhole(link *cable, f []byte) {
	f = f[vnet:]
	if tagged {
		f = append(f[:12], f[12+packet.TagLen:]...)
	}
	proto := header.IPv4ProtocolNumber
	if f[12] == 0x86 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f[packet.EthernetLen:])})
	link.InjectInbound(proto, pkt)
	pkt.DecRef()
}

// drain passes what a stack sends to out, until ctx ends.
func drain(ctx context.Context, link *cable, toGuest bool, out func([]byte)) {
	for {
		pkt := link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		out(frame(pkt, toGuest))
		pkt.DecRef()
	}
}

// deliver gives the guest a frame.
func (g *guest) deliver(f []byte) error {
	inject(g.link, f)
	return nil
}

// Resume lets the guest run: its stack, its program, and what carries its packets.
func (g *guest) Resume(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.paused {
		return nil
	}
	g.paused = false
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.group = cancel, new(sync.WaitGroup)
	if g.frozen {
		g.image.stack.Resume()
		g.frozen = false
	}
	link, p := g.link, g.image.program
	if g.copied {
		g.copied = false
		for _, c := range p.conns {
			// The stack does not wait for acknowledgments of what it had sent before it
			// was copied, until it has something to do.
			c.ep.SocketOptions().SetDelayOption(true)
			c.ep.SocketOptions().SetDelayOption(false)
		}
	}
	g.group.Go(func() { drain(ctx, link, false, g.out) })
	g.group.Go(func() {
		for ctx.Err() == nil {
			if !p.step() {
				select {
				case <-ctx.Done():
				case <-time.After(200 * time.Microsecond):
				}
			}
		}
	})
	return nil
}

// Pause stops it.
func (g *guest) Pause(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused {
		return nil
	}
	g.paused = true
	g.image.stack.Pause()
	g.frozen = true
	g.cancel()
	g.group.Wait()
	// What the stack has sent, and nobody has taken, it has sent before the pause.
	for {
		pkt := g.link.Read()
		if pkt == nil {
			return nil
		}
		g.out(frame(pkt, false))
		pkt.DecRef()
	}
}

// sockets says how the connections of a paused guest stand.
func (g *guest) sockets() string {
	var s strings.Builder
	for _, c := range g.image.program.conns {
		var o tcpip.TCPInfoOption
		err := c.ep.GetSockOpt(&o)
		from, _ := c.ep.GetRemoteAddress()
		fmt.Fprintf(&s, "port %d: %d bytes to send, %+v %v\n", from.Port, c.left, o, err)
	}
	return s.String()
}

// save returns the image of a paused guest.
func (g *guest) save() ([]byte, error) {
	var b bytes.Buffer
	_, err := state.Save(context.Background(), &b, &g.image)
	return b.Bytes(), err
}

// become loads what was saved into a paused guest.
func (g *guest) become(saved []byte) error {
	var i image
	if _, err := state.Load(context.Background(), bytes.NewReader(saved), &i); err != nil {
		return err
	}
	fresh, link := newStack(guest4, guest6, g.gso)
	i.stack.ReplaceConfig(fresh)
	i.stack.Restore()
	g.image, g.link, g.frozen, g.copied = i, link, false, true
	return nil
}
