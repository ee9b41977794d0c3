package proxy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

var (
	_ colo.PrimaryNetwork   = (*proxy.Primary)(nil)
	_ colo.SecondaryNetwork = (*proxy.Secondary)(nil)
	_ colo.VM               = (*proxy.Primary)(nil)
	_ colo.VM               = (*proxy.Secondary)(nil)
)

// datagram builds a UDP packet with a word in it.
func datagram(word string) []byte {
	b := make([]byte, packet.EthernetLen+packet.IPv4Len+packet.UDPLen, 64)
	binary.BigEndian.PutUint16(b[12:], packet.TypeIPv4)
	ip := b[packet.EthernetLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, packet.ProtoUDP
	binary.BigEndian.PutUint16(ip[2:], uint16(packet.IPv4Len+packet.UDPLen+len(word)))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	udp := ip[packet.IPv4Len:]
	binary.BigEndian.PutUint32(udp, 53<<16|5000)
	binary.BigEndian.PutUint16(udp[4:], uint16(packet.UDPLen+len(word)))
	return append(b, word...)
}

// word returns the payload of a frame that datagram has built.
func word(p []byte) string { return string(p[packet.EthernetLen+packet.IPv4Len+packet.UDPLen:]) }

// A guest has a memory of what it was told and what it said. It is a VM.
type guest struct {
	t *testing.T

	mu      sync.Mutex
	paused  bool
	told    []string
	said    []string
	full    bool // its ring
	onPause func()
}

func (g *guest) Pause(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = true
	if g.onPause != nil {
		return errors.New("it would not stop")
	}
	return nil
}

func (g *guest) Resume(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = false
	return nil
}

func (g *guest) deliver(p []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused {
		g.t.Error("a packet was delivered to a guest that stands still")
	}
	if g.full {
		return errors.New("ring full")
	}
	g.told = append(g.told, word(p))
	return nil
}

func (g *guest) heard() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.told)
}

// become gives the guest the memory of another.
func (g *guest) become(told, said []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told, g.said = slices.Clone(told), slices.Clone(said)
}

// A wire is the network of one side.
type wire struct {
	in     chan []byte
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	cond *sync.Cond
	out  []string
	hold bool // writes wait
	dead bool // writes fail
}

func newWire() *wire {
	w := &wire{in: make(chan []byte, 256), closed: make(chan struct{})}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *wire) ReadPacket() ([]byte, error) {
	select {
	case p := <-w.in:
		return p, nil
	case <-w.closed:
		return nil, io.EOF
	}
}

func (w *wire) WritePacket(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.hold && !w.dead {
		w.cond.Wait()
	}
	if w.dead {
		return net.ErrClosed
	}
	w.out = append(w.out, word(p))
	return nil
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
	w.cond.Broadcast()
	return nil
}

func (w *wire) setHold(hold bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hold = hold
	w.cond.Broadcast()
}

func (w *wire) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.out)
}

// A world is a pair, its guests and its networks, in the bubble of a test.
type world struct {
	t              *testing.T
	ctx            context.Context
	cancel         context.CancelFunc
	group          sync.WaitGroup
	p              *proxy.Primary
	s              *proxy.Secondary
	pg, sg         *guest
	pw, sw         *wire
	preg, sreg     vmstate.Registry
	epoch          uint64
	asked          []event.Cause
	amu            sync.Mutex
	pserve, sserve chan error
	pconn, sconn   net.Conn
}

func newWorld(t *testing.T, change func(*proxy.PrimaryConfig, *proxy.SecondaryConfig)) *world {
	t.Helper()
	w := &world{t: t, pg: &guest{t: t}, sg: &guest{t: t, paused: true}, pw: newWire(), sw: newWire()}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	pc := proxy.PrimaryConfig{VM: w.pg, Deliver: w.pg.deliver, RequestCheckpoint: func(c event.Cause) {
		w.amu.Lock()
		defer w.amu.Unlock()
		w.asked = append(w.asked, c)
	}}
	sc := proxy.SecondaryConfig{VM: w.sg, Deliver: w.sg.deliver}
	if change != nil {
		change(&pc, &sc)
	}
	w.p, w.s = proxy.NewPrimary(pc), proxy.NewSecondary(sc)
	for _, err := range []error{w.preg.Register(w.p.Entry(0), w.p), w.sreg.Register(w.s.Entry(0), w.s)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p, s, pw, sw := w.p, w.s, w.pw, w.sw
	w.group.Go(func() { p.Run(w.ctx, pw) })
	w.group.Go(func() { s.Run(w.ctx, sw) })
	return w
}

// replaceSecondary puts another host in the place of one that is gone.
func (w *world) replaceSecondary() {
	w.sw.Close()
	w.sg, w.sw, w.epoch, w.sreg = &guest{t: w.t, paused: true}, newWire(), 0, vmstate.Registry{}
	w.s = proxy.NewSecondary(proxy.SecondaryConfig{VM: w.sg, Deliver: w.sg.deliver})
	w.must(w.sreg.Register(w.s.Entry(0), w.s))
	s, sw := w.s, w.sw
	w.group.Go(func() { s.Run(w.ctx, sw) })
}

// connect makes a new connection between the sides.
func (w *world) connect() { w.join(net.Pipe()) }

// join connects the two sides by the two ends of a connection.
func (w *world) join(pconn, sconn net.Conn) {
	w.pconn, w.sconn = pconn, sconn
	w.pserve, w.sserve = make(chan error, 1), make(chan error, 1)
	p, s, pe, se := w.pconn, w.sconn, w.pserve, w.sserve
	primary, secondary := w.p, w.s
	w.group.Go(func() { pe <- primary.Serve(w.ctx, p) })
	w.group.Go(func() { se <- secondary.Serve(w.ctx, s) })
	synctest.Wait()
	if w.p.Stats().Connected {
		w.must(w.p.Connected(w.ctx))
	}
}

// end closes both networks, and returns when every goroutine of the world has ended.
func (w *world) end() {
	w.cancel()
	w.pw.Close()
	w.sw.Close()
	w.group.Wait()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// requests returns the checkpoints that were asked for since the last call, by their cause.
func (w *world) requests() []event.Cause {
	synctest.Wait()
	w.amu.Lock()
	defer w.amu.Unlock()
	defer func() { w.asked = nil }()
	return w.asked
}

// arrive brings packets from the network of the primary, one for each word.
func (w *world) arrive(words ...string) {
	for _, x := range words {
		w.pw.in <- datagram(x)
	}
}

// say has a guest send a packet for each word, and remember it.
func (w *world) say(g *guest, words ...string) {
	w.t.Helper()
	for _, x := range words {
		var err error
		if g == w.pg {
			err = w.p.WritePacket(datagram(x))
		} else {
			err = w.s.WritePacket(datagram(x))
		}
		w.must(err)
		g.said = append(g.said, x)
	}
}

// A snapshot has what a checkpoint carries of the guest and of its network.
type snapshot struct {
	told, said []string
	network    []byte
}

func (w *world) mark() snapshot {
	w.t.Helper()
	w.must(w.s.Pause(w.ctx))
	w.must(w.p.Pause(w.ctx))
	w.must(w.p.Mark(w.epoch))
	var b bytes.Buffer
	q := qemufile.NewWriter(&b)
	w.must(w.preg.SaveDevices(q))
	vmstate.PutEOF(q)
	w.must(q.Flush())
	x := snapshot{w.pg.heard(), slices.Clone(w.pg.said), b.Bytes()}
	w.must(w.p.Resume(w.ctx))
	return x
}

func (w *world) commit(x snapshot) {
	w.t.Helper()
	w.must(w.sreg.LoadDevices(x.network, nil))
	w.must(w.sreg.Commit())
	w.sg.become(x.told, x.said)
	w.must(w.s.Commit(w.epoch))
}

func (w *world) run() {
	w.t.Helper()
	w.must(w.s.Resume(w.ctx))
	w.must(w.s.Resumed(w.epoch))
}

// checkpoint makes one checkpoint, from the pause to the word that it was loaded.
func (w *world) checkpoint() {
	w.t.Helper()
	x := w.mark()
	w.must(w.p.Received(w.epoch))
	w.commit(x)
	w.run()
	w.must(w.p.Loaded(w.epoch))
	w.epoch++
	synctest.Wait()
}

func (w *world) wantLeft(why string, wr *wire, want ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := wr.left(); !slices.Equal(got, want) {
		w.t.Errorf("%s: %q have left, want %q", why, got, want)
	}
}

func (w *world) wantTold(why string, g *guest, want ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := g.heard(); !slices.Equal(got, want) {
		w.t.Errorf("%s: the guest was told %q, want %q", why, got, want)
	}
}

// newContinuous returns a world of either mode.
func newContinuous(t *testing.T, continuous bool) *world {
	return newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
		p.Continuous, s.Continuous = continuous, continuous
	})
}
