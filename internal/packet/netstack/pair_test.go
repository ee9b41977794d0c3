package netstack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// offloads has the guests leave checksums and the cutting of segments to their device.
// It is not for each run: a stack that was restored while it held segments of many packets
// now and then sends other data than it was given. That is the stack's own doing, as
// TestAStackThatWasRestoredSendsOtherDataByItself shows.
var offloads = flag.Bool("netstack.offloads", false, "with frames of many segments")

// A client is a stack on the network that both hosts are on. Its packets go to the
// host that is in charge, as those of a bridge do that has learned where the guest
// is.
type client struct {
	stack *stack.Stack
	link  *cable
	whole atomic.Uint64 // how many frames have come that are longer than a segment

	lossy *lossy // nil: nothing is lost

	mu     sync.Mutex
	charge *place
}

// A place is a host's on the network: a proxy.Network.
type place struct {
	c      *client
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	dead   atomic.Bool // what is written is lost, as the host is
	left   atomic.Uint64
}

func (c *client) plug() *place {
	return &place{c: c, in: make(chan []byte, 1<<16), closed: make(chan struct{})}
}

func (c *client) moveTo(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.charge = p
}

// send carries what the client sends.
func (c *client) send(f []byte) {
	if c.lossy.loses() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.charge.in <- f:
	default: // a network loses packets
	}
}

func (p *place) ReadPacket() ([]byte, error) {
	select {
	case f := <-p.in:
		return f, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

func (p *place) WritePacket(f []byte) error {
	if p.dead.Load() {
		return net.ErrClosed
	}
	p.left.Add(1)
	if f[1] != packet.GSONone {
		p.c.whole.Add(1)
	}
	inject(p.c.link, f)
	return nil
}

func (p *place) Close() error {
	p.dead.Store(true)
	p.once.Do(func() { close(p.closed) })
	return nil
}

// A pair is two hosts with a guest each, of which one is protected by the other.
type pair struct {
	t      *testing.T
	ctx    context.Context
	group  *sync.WaitGroup
	pg, sg *guest
	p      *proxy.Primary
	s      *proxy.Secondary
	pw, sw *place
	pe, se *filter.Edge
	pend   context.CancelFunc // the primary's host
	send   context.CancelFunc // the secondary's host
	preg   *vmstate.Registry
	sreg   *vmstate.Registry
	epoch  uint64
	wants  chan event.Cause

	alone atomic.Bool   // the secondary has taken over
	made  atomic.Uint64 // checkpoints, where others look at their number

	checkpoints int
	size        int
}

// protect makes a pair of a guest that runs on the host with the port pw, and of a
// new host. With an Edge before the network of the first, pe, the hosts carry the
// connections; without, the proxies do, and was, if it is not nil, is promoted on the first.
func protect(t *testing.T, ctx context.Context, group *sync.WaitGroup, c *client, g *guest, pw *place, pe *filter.Edge, was *proxy.Secondary, v6 bool) *pair {
	t.Helper()
	x := &pair{t: t, ctx: ctx, group: group, pg: g, sg: newGuest(v6, g.gso), pw: pw, sw: c.plug(), pe: pe, wants: make(chan event.Cause, 1)}
	cfg := proxy.PrimaryConfig{VM: g, VNetHdr: vnet, Deliver: func(f []byte) error { return g.deliver(f) }, RequestCheckpoint: func(c event.Cause) {
		select {
		case x.wants <- c:
		default:
		}
	}}
	if was != nil {
		left := 0
		if x.p, left = was.Promote(cfg); left != 0 {
			t.Errorf("%d connections are not translated", left)
		}
	} else {
		x.p = proxy.NewPrimary(cfg)
	}
	rewriter := filter.RewriterConfig{}
	if pe != nil {
		x.se = new(filter.Edge)
		rewriter.Edge = x.se
	}
	x.s = proxy.NewSecondary(proxy.SecondaryConfig{
		VM: x.sg, VNetHdr: vnet, Rewriter: rewriter, Deliver: func(f []byte) error {
			if c.lossy.loses() {
				return nil
			}
			return x.sg.deliver(f)
		},
		Announce: proxy.AnnounceConfig{Rounds: 5},
	})
	x.pg.out = func(f []byte) { x.must(x.p.WritePacket(f)) }
	x.sg.out = func(f []byte) {
		if x.alone.Load() || !c.lossy.loses() {
			x.must(x.s.WritePacket(f))
		}
	}
	x.preg, x.sreg = new(vmstate.Registry), new(vmstate.Registry)
	x.must(errors.Join(x.preg.Register(x.p.Entry(0), x.p), x.sreg.Register(x.s.Entry(0), x.s)))
	var pnet, snet proxy.Network = x.pw, x.sw
	if pe != nil {
		x.must(errors.Join(x.preg.Register(x.pe.Entry(0), x.pe), x.sreg.Register(x.se.Entry(0), x.se)))
		pnet, snet = pe.Network(x.pw, vnet), x.se.Network(x.sw, vnet)
	}
	var pctx, sctx context.Context
	pctx, x.pend = context.WithCancel(ctx)
	sctx, x.send = context.WithCancel(ctx)
	a, b := net.Pipe()
	p, s := x.p, x.s
	group.Go(func() { p.Run(pctx, pnet) })
	group.Go(func() { s.Run(sctx, snet) })
	group.Go(func() { p.Serve(pctx, a) })
	group.Go(func() { s.Serve(sctx, b) })
	x.must(p.Connected(ctx))
	return x
}

func (x *pair) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Error(err)
	}
}

// checkpoint copies the guest of the primary to the secondary.
func (x *pair) checkpoint() {
	x.t.Helper()
	x.must(x.p.Pause(x.ctx))
	x.must(x.p.Mark(x.epoch))
	var devices bytes.Buffer
	w := qemufile.NewWriter(&devices)
	x.must(x.preg.SaveDevices(w))
	vmstate.PutEOF(w)
	x.must(w.Flush())
	saved, err := x.pg.save()
	x.must(err)
	x.must(x.p.Resume(x.ctx)) // early, as a session may
	x.must(x.p.Received(x.epoch))
	x.must(x.s.Pause(x.ctx))
	x.must(x.sreg.LoadDevices(devices.Bytes(), nil))
	x.must(x.sreg.Commit())
	x.must(x.sg.become(saved))
	x.must(x.s.Commit(x.epoch))
	x.must(x.s.Resume(x.ctx))
	x.must(x.s.Resumed(x.epoch))
	x.must(x.p.Loaded(x.epoch))
	x.epoch++
	x.checkpoints++
	x.size = len(saved)
}

// run makes checkpoints when they are asked for, and every now and then, until ctx
// ends.
func (x *pair) run(ctx context.Context, every time.Duration) {
	for {
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-x.wants:
		case <-timer.C:
		}
		timer.Stop()
		x.checkpoint()
	}
}

// kill ends the primary's host, in the middle of everything.
func (x *pair) kill() {
	x.t.Helper()
	x.pw.Close()
	x.pend()
	x.must(x.pg.Pause(x.ctx))
}

// takeOver lets the secondary go on alone.
func (x *pair) takeOver(c *client) {
	x.t.Helper()
	x.alone.Store(true)
	x.must(x.s.Failover())
	c.moveTo(x.sw)
}

// patience bounds the wait of a client for the next bytes, and not for all of them: that depends
// on the machine. A test that hangs says where.
const patience = 2 * time.Minute

var errOther = errors.New("other data")

// download asks for n bytes, and looks at each that comes.
func download(conn net.Conn, r *bufio.Reader, n, seed uint64, progress *atomic.Uint64) error {
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "down %d %d\n", n, seed)
	b := make([]byte, 16<<10)
	for i := uint64(0); i < n; {
		conn.SetReadDeadline(time.Now().Add(patience))
		k, err := r.Read(b[:min(uint64(len(b)), n-i)])
		for j := range k {
			if want := answer(seed, i+uint64(j)); b[j] != want {
				return fmt.Errorf("%w: byte %d of the answer %d is %#x, want %#x; from there on: %x", errOther, i+uint64(j), seed, b[j], want, b[j:min(k, j+32)])
			}
		}
		i += uint64(k)
		progress.Add(uint64(k))
		if err != nil {
			return fmt.Errorf("after %d of %d bytes of the answer %d: %w", i, n, seed, err)
		}
	}
	return nil
}

// Clients download from a guest while it is checkpointed in the middle of their
// connections, which rolls the stack of the secondary's guest back; its host dies, the
// other one takes over, is protected itself, dies too, and the third one goes on. Of no
// connection, old or new, is a byte wrong or missing.
//
// Each is a process of its own, because the stack ends its process now and then once
// it was restored, by a check against a fault of its own (protectedWriteList in its
// tcp/snd.go, or the count of a segment's references): that says nothing of the guests, and
// it is tried again.
func TestClientsNoticeNothingOfTwoFailovers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const child, tries = "LOCKSTEP_NETSTACK_CHILD", 6
	for _, ip := range []string{"IPv4", "IPv6"} {
		t.Run(ip, func(t *testing.T) {
			if os.Getenv(child) != "" {
				twoFailovers(t, ip == "IPv6", ip == "IPv6", *offloads)
				return
			}
			for range tries {
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", fmt.Sprintf("-netstack.offloads=%t", *offloads), "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
				cmd.Env = append(os.Environ(), child+"=1")
				out, err := cmd.CombinedOutput()
				switch {
				case err == nil && bytes.Contains(out, []byte("checkpoints")):
					t.Logf("%s", out)
					return
				case !bytes.Contains(out, []byte("\npanic: segment ")) && !bytes.Contains(out, []byte("\npanic: Incrementing non-positive count ")):
					t.Fatalf("%v\n%s", err, out)
				}
				t.Log("the stack has failed")
			}
			t.Fatal("the stack fails each time")
		})
	}
}

// byHand says that the hosts carry the connections through the second failover, and
// not the proxies.
// With gso the guests send frames of many segments.
func twoFailovers(t *testing.T, v6, byHand, gso bool) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	c := new(client)
	c.stack, c.link = newStack(client4, client6, false)
	defer group.Wait()
	defer cancel()
	group.Go(func() { drain(ctx, c.link, true, c.send) })

	first := newGuest(v6, gso)
	pw := c.plug()
	c.moveTo(pw)
	var edge *filter.Edge
	if byHand {
		edge = new(filter.Edge)
	}
	x := protect(t, ctx, &group, c, first, pw, edge, nil, v6)
	x.must(x.p.Resume(ctx))

	dial := func() net.Conn {
		addr, proto := guest4, header.IPv4ProtocolNumber
		if v6 {
			addr, proto = guest6, header.IPv6ProtocolNumber
		}
		conn, err := gonet.DialContextTCP(ctx, c.stack, tcpip.FullAddress{NIC: nic, Addr: addr, Port: port}, proto)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	var downloads sync.WaitGroup
	var came [5]atomic.Uint64
	var done [5]atomic.Bool
	start := func(i int, conn net.Conn, n uint64) {
		downloads.Go(func() {
			defer done[i].Store(true)
			defer conn.Close()
			r := bufio.NewReader(conn)
			for part := range uint64(4) {
				if err := download(conn, r, n/4, uint64(i)*100+part, &came[i]); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
			}
		})
	}
	// until waits for a download to have come a little further, or to its end.
	until := func(i int, n uint64) {
		for want := came[i].Load() + n; came[i].Load() < want && !done[i].Load(); {
			time.Sleep(time.Millisecond)
		}
	}
	during := func(x *pair, fn func()) {
		rctx, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { x.run(rctx, 100*time.Millisecond) })
		fn()
		stop()
		running.Wait()
	}
	const size = 2 << 20
	long := uint64(8 << 20) // still comes at the end
	if gso {
		long = 24 << 20
	}
	start(0, dial(), size) // before there is a pair
	until(0, 100<<10)
	x.checkpoint()
	during(x, func() {
		start(1, dial(), size)
		until(1, 100<<10+rnd.Uint64N(200<<10))
		until(0, 100<<10)
	})
	start(2, dial(), long) // since the last checkpoint: the secondary has other numbers
	until(2, 50<<10+rnd.Uint64N(100<<10))
	t.Logf("%d checkpoints, the last of %d bytes: %+v", x.checkpoints, x.size, x.p.Stats().Compare)
	x.kill()
	x.takeOver(c)
	until(2, 100<<10)
	if x.s.Stats().Rewriter.Rewritten == 0 {
		t.Error("nothing was translated")
	}

	// The survivor is protected by a third host. Its guest has numbers of its own on
	// the third connection.
	x.must(x.s.Pause(ctx))
	x.must(x.s.Drain(ctx))
	x.send()
	x.sw.Close()
	var promoted *proxy.Secondary
	if !byHand {
		promoted = x.s
	} else if left := x.s.HandOver(x.se); left != 0 || x.se.Len() == 0 {
		t.Errorf("%d connections are translated at the edge, %d are not", x.se.Len(), left)
	}
	pw = c.plug()
	c.moveTo(pw)
	y := protect(t, ctx, &group, c, x.sg, pw, x.se, promoted, v6)
	x.must(y.p.Resume(ctx))
	until(2, 50<<10)
	y.checkpoint()
	during(y, func() {
		start(3, dial(), size)
		until(3, 50<<10+rnd.Uint64N(100<<10))
		until(2, 50<<10)
	})
	start(4, dial(), size)
	until(4, 50<<10+rnd.Uint64N(100<<10))
	y.kill()
	y.takeOver(c)
	downloads.Wait()
	if t.Failed() {
		y.must(y.sg.Pause(ctx))
		t.Logf("the third host's guest:\n%s", y.sg.sockets())
	}
	if n := c.whole.Load(); gso != (n > 0) {
		t.Errorf("%d frames were longer than a segment", n)
	}
	if byHand && (y.se.Len() == 0 || y.se.Rewritten() == 0) {
		t.Errorf("the third host translates %d connections at its edge, and has translated %d packets", y.se.Len(), y.se.Rewritten())
	}
	t.Logf("%d checkpoints, the last of %d bytes: %+v", y.checkpoints, y.size, y.p.Stats().Compare)
	t.Logf("%+v", y.s.Stats().Rewriter)
}
