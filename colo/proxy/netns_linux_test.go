package proxy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/netns"
)

// In this test the kernel's TCP is in the place of the guests: two namespaces
// with one address and the same server, and a third with a client. There is no
// checkpoint but the first, since a kernel's TCP cannot be made a copy of
// another's, so whatever asks for one is a failure.

const serverPort = "7000"

// serve answers "down N SEED" with N bytes, and "up N" and N bytes with a hash.
func serve(c net.Conn) {
	defer c.Close()
	for {
		var way string
		var n int64
		var seed uint64
		if _, err := fmt.Fscanf(c, "%s %d %d\n", &way, &n, &seed); err != nil {
			return
		}
		var err error
		if way == "down" {
			_, err = io.CopyN(c, bytesOf(seed), n)
		} else {
			h := sha256.New()
			if _, err = io.CopyN(h, c, n); err == nil {
				_, err = c.Write(h.Sum(nil))
			}
		}
		if err != nil {
			return
		}
	}
}

func bytesOf(seed uint64) io.Reader {
	return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
}

// switched is a network behind a switch that sends the client's packets to one
// port at a time.
type switched struct {
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	client *netns.Stack
	left   atomic.Int64
}

func (s *switched) ReadPacket() ([]byte, error) {
	select {
	case p := <-s.in:
		return p, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *switched) WritePacket(p []byte) error {
	select {
	case <-s.closed:
		return net.ErrClosed
	default:
		s.left.Add(1)
		return s.client.Device.WritePacket(complete(p, s.client.VNetHdrLen()))
	}
}

func (s *switched) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

type running struct{}

func (running) Pause(context.Context) error  { return nil }
func (running) Resume(context.Context) error { return nil }

// The guests leave checksums and the cutting of segments to their device, or not,
// and the clocks of their stacks differ.
func TestAConnectionOfTheKernelsTCPOutlivesThePrimary(t *testing.T) {
	for _, dev := range []tap.Config{{}, {VNetHdrLen: 12, Offload: tap.OffloadTCP}} {
		for _, addr := range []string{netns.Guest4, netns.Guest6} {
			for _, way := range []string{"down", "up"} {
				t.Run(fmt.Sprintf("header=%d/%s/%s", dev.VNetHdrLen, addr, way), func(t *testing.T) { outlive(t, dev, addr, way) })
			}
		}
	}
}

// complete returns a copy of frame with its checksum completed.
func complete(frame []byte, vnet int) []byte {
	frame = bytes.Clone(frame)
	netns.Complete(frame, vnet)
	return frame
}

// retimed returns a copy of frame, with other timestamps.
func retimed(frame []byte, vnet int, value, echo uint32) []byte {
	frame = bytes.Clone(frame)
	netns.Retime(frame, vnet, value, echo)
	return frame
}

// A kernelPair is two guests that are the kernel's stacks, with a server each, and a
// client's stack on the network of both hosts.
type kernelPair struct {
	t      *testing.T
	ctx    context.Context
	client *netns.Stack
	guests [2]*netns.Stack
	ports  [2]*switched
	p      *proxy.Primary
	s      *proxy.Secondary
	active atomic.Int32       // the port at which the guest is
	die    context.CancelFunc // ends the primary's host
}

// newKernelPair makes a pair in epoch 0. serve is given each connection of a server of
// one of the guests, and is to end with it.
func newKernelPair(t *testing.T, dev tap.Config, change func(*proxy.PrimaryConfig, *proxy.SecondaryConfig), serve func(guest int, c net.Conn)) *kernelPair {
	t.Helper()
	const ahead = 1<<31 + 12345 // the clock of the secondary's guest
	vnet := dev.VNetHdrLen
	k := &kernelPair{t: t, client: netns.New(t, false, dev), guests: [2]*netns.Stack{netns.New(t, true, dev), netns.New(t, true, dev)}}
	deliver := func(i int) func([]byte) error {
		return func(p []byte) error {
			if i == 1 {
				p = retimed(p, vnet, 0, 1<<32-ahead)
			}
			return k.guests[i].WritePacket(complete(p, vnet))
		}
	}
	const limit = 256 << 20
	pc := proxy.PrimaryConfig{VM: running{}, Deliver: deliver(0), Limit: limit, Mirror: 64 << 20, VNetHdr: vnet}
	pc.Compare.MaxQueue, pc.Compare.Timeout = 1<<14, time.Minute
	sc := proxy.SecondaryConfig{VM: running{}, Deliver: deliver(1), Limit: limit, Outbox: 64 << 20, VNetHdr: vnet}
	change(&pc, &sc)
	k.p, k.s = proxy.NewPrimary(pc), proxy.NewSecondary(sc)
	for i := range k.ports {
		k.ports[i] = &switched{in: make(chan []byte, 1<<14), closed: make(chan struct{}), client: k.client}
	}
	ctx, cancel := context.WithCancel(t.Context())
	host, die := context.WithCancel(ctx) // the primary's
	k.ctx, k.die = ctx, die
	var group sync.WaitGroup
	var listeners []net.Listener
	t.Cleanup(func() {
		cancel()
		for _, l := range listeners {
			l.Close()
		}
		for _, st := range []*netns.Stack{k.client, k.guests[0], k.guests[1]} {
			st.Close()
		}
		group.Wait()
	})
	a, b := net.Pipe()
	group.Go(func() { k.p.Serve(host, a) })
	group.Go(func() { k.s.Serve(ctx, b) })
	group.Go(func() { k.p.Run(host, k.ports[0]) })
	group.Go(func() { k.s.Run(ctx, k.ports[1]) })
	group.Go(func() {
		k.client.Each(func(packet []byte) {
			select {
			case k.ports[k.active.Load()].in <- bytes.Clone(packet):
			default: // a switch has only so much room
			}
		})
	})
	for i, nic := range []interface {
		ComposeAtMost(int, func([]byte) int) error
	}{k.p, k.s} {
		group.Go(func() {
			for {
				var ended error
				err := nic.ComposeAtMost(filter.MaxFrame, func(packet []byte) int {
					n, err := k.guests[i].ReadInto(packet)
					if ended = err; i == 1 && err == nil {
						netns.Retime(packet[:n], vnet, ahead, 0)
					}
					return n
				})
				if ended != nil {
					return
				}
				if err != nil && !(i == 0 && host.Err() != nil) {
					t.Errorf("guest %d: %v", i, err)
				}
			}
		})
		var l net.Listener
		k.guests[i].In(t, func() (err error) { l, err = net.Listen("tcp", ":"+serverPort); return err })
		group.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				closed := context.AfterFunc(ctx, func() { c.Close() })
				group.Go(func() { defer closed(); serve(i, c) })
			}
		})
		listeners = append(listeners, l)
	}
	if err := k.s.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	if err := k.p.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	if err := checkpointOf(ctx, k.p, k.s, 0); err != nil {
		t.Fatal(err)
	}
	return k
}

// dial connects the client to the guest's server.
func (k *kernelPair) dial(addr string) net.Conn {
	k.t.Helper()
	var c net.Conn
	k.client.In(k.t, func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(addr, serverPort), 20*time.Second)
		return err
	})
	k.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(100 * time.Second)) // so that a test that hangs says where
	return c
}

func outlive(t *testing.T, dev tap.Config, addr, way string) {
	var mu sync.Mutex
	var asked []event.Cause
	k := newKernelPair(t, dev, func(pc *proxy.PrimaryConfig, _ *proxy.SecondaryConfig) {
		pc.RequestCheckpoint = func(c event.Cause) { mu.Lock(); asked = append(asked, c); mu.Unlock() }
	}, func(_ int, c net.Conn) { serve(c) })
	p, s, ctx := k.p, k.s, k.ctx
	c := k.dial(addr)
	kill := func() {
		mu.Lock()
		if asked != nil {
			t.Errorf("two stacks in step, and checkpoints are asked for: %v", asked)
		}
		mu.Unlock()
		k.die()
		k.guests[0].Close()
		k.ports[0].Close()
		if err := s.Pause(ctx); err != nil {
			t.Error(err)
		}
		if err := s.Failover(); err != nil {
			t.Error(err)
		}
		if err := s.Resume(ctx); err != nil {
			t.Error(err)
		}
		k.active.Store(1)
	}
	const n = 2 << 20
	for round, seed := range []uint64{7, 8} {
		half := kill
		if round > 0 {
			half = func() {}
		}
		want := sha256.New()
		var got []byte
		fmt.Fprintf(c, "%s %d %d\n", way, n, seed)
		var err error
		if way == "down" {
			io.CopyN(want, bytesOf(seed), n)
			h := sha256.New()
			if _, err = io.CopyN(h, c, n/2); err == nil {
				half()
				_, err = io.CopyN(h, c, n-n/2)
			}
			got = h.Sum(nil)
		} else {
			src := io.TeeReader(bytesOf(seed), want)
			if _, err = io.CopyN(c, src, n/2); err == nil {
				half()
				if _, err = io.CopyN(c, src, n-n/2); err == nil {
					got = make([]byte, sha256.Size)
					_, err = io.ReadFull(c, got)
				}
			}
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if !bytes.Equal(got, want.Sum(nil)) {
			t.Errorf("round %d: what came is not what was sent", round)
		}
	}
	ps, ss := p.Stats(), s.Stats()
	if ps.Matched == 0 || ss.Rewriter.Rewritten == 0 {
		t.Errorf("%d matched, %d rewritten: nothing was tested", ps.Matched, ss.Rewriter.Rewritten)
	}
	t.Logf("%d packets matched, %d of the secondary's left, %d input packets were dropped there", ps.Matched, k.ports[1].left.Load(), ss.Refused)
}
