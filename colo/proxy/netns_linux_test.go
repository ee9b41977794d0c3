package proxy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// In this test the kernel's TCP is in the place of the guests: two namespaces
// with one address and the same server, and a third with a client. There is no
// checkpoint but the first, since a kernel's TCP cannot be made a copy of
// another's, so whatever asks for one is a failure.

const (
	guestMAC, clientMAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
	guestIP, clientIP   = "10.9.0.1", "10.9.0.2"
	serverPort          = ":7000"
)

// A stack is a network namespace with one interface, whose other end is ours.
type stack struct {
	*tap.Device
	do chan func()
}

// newStack makes one that lives in a thread of this process.
func newStack(t *testing.T, ip, mac, otherIP, otherMAC string) *stack {
	t.Helper()
	require.Outside(t, require.NetNS)
	s := &stack{do: make(chan func())}
	begun := make(chan error)
	var thread sync.WaitGroup
	thread.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		begun <- err
		if err == nil {
			for fn := range s.do {
				fn()
			}
		}
	})
	if err := <-begun; err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(thread.Wait)
	t.Cleanup(func() { close(s.do) })
	program := require.Program(t, require.NetNS, "ip")
	s.in(t, func() (err error) {
		if s.Device, err = tap.Open(tap.Config{Name: "net0"}); err != nil {
			return err
		}
		t.Cleanup(func() { s.Close() })
		cmd := exec.Command(program, "-batch", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`
			link set net0 address %s txqueuelen 20000 addrgenmode none
			link set net0 up
			address add %s/24 dev net0
			neighbour replace %s lladdr %s dev net0 nud permanent
		`, mac, ip, otherIP, otherMAC))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return s
}

// in calls fn in the namespace. Sockets that it makes belong there.
func (s *stack) in(t *testing.T, fn func() error) {
	t.Helper()
	done := make(chan error)
	s.do <- func() { done <- fn() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// read gives fn what the stack sends to its neighbour, until it is closed.
func (s *stack) read(fn func(p []byte)) {
	for {
		p, err := s.ReadPacket()
		if err != nil {
			return
		}
		if p[0]&1 == 0 { // no multicast
			fn(p)
		}
	}
}

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
	client *stack
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
		return s.client.Device.WritePacket(p)
	}
}

func (s *switched) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

type running struct{}

func (running) Pause(context.Context) error  { return nil }
func (running) Resume(context.Context) error { return nil }

func TestAConnectionOfTheKernelsTCPOutlivesThePrimary(t *testing.T) {
	for _, way := range []string{"down", "up"} {
		t.Run(way, func(t *testing.T) { outlive(t, way) })
	}
}

func outlive(t *testing.T, way string) {
	client := newStack(t, clientIP, clientMAC, guestIP, guestMAC)
	guests := [2]*stack{}
	for i := range guests {
		guests[i] = newStack(t, guestIP, guestMAC, clientIP, clientMAC)
	}
	var mu sync.Mutex
	var asked []event.Cause
	const limit = 256 << 20
	pc := proxy.PrimaryConfig{VM: running{}, Deliver: guests[0].WritePacket, Limit: limit, Mirror: 64 << 20,
		RequestCheckpoint: func(c event.Cause) { mu.Lock(); asked = append(asked, c); mu.Unlock() }}
	pc.Compare.MaxQueue, pc.Compare.Timeout = 1<<14, time.Minute
	p := proxy.NewPrimary(pc)
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: running{}, Deliver: guests[1].WritePacket, Limit: limit, Outbox: 64 << 20})
	ports := [2]*switched{}
	for i := range ports {
		ports[i] = &switched{in: make(chan []byte, 1<<14), closed: make(chan struct{}), client: client}
	}

	ctx, cancel := context.WithCancel(t.Context())
	host, die := context.WithCancel(ctx) // the primary's
	defer die()
	var group sync.WaitGroup
	a, b := net.Pipe()
	group.Go(func() { p.Serve(host, a) })
	group.Go(func() { s.Serve(ctx, b) })
	group.Go(func() { p.Run(host, ports[0]) })
	group.Go(func() { s.Run(ctx, ports[1]) })
	var active atomic.Int32
	group.Go(func() {
		client.read(func(packet []byte) {
			select {
			case ports[active.Load()].in <- bytes.Clone(packet):
			default: // a switch has only so much room
			}
		})
	})
	for i, write := range []func([]byte) error{p.WritePacket, s.WritePacket} {
		group.Go(func() {
			guests[i].read(func(packet []byte) {
				if err := write(packet); err != nil && !(i == 0 && host.Err() != nil) {
					t.Errorf("guest %d: %v", i, err)
				}
			})
		})
		var l net.Listener
		guests[i].in(t, func() (err error) { l, err = net.Listen("tcp", serverPort); return err })
		group.Go(func() {
			if c, err := l.Accept(); err == nil {
				group.Go(func() { <-ctx.Done(); c.Close() })
				serve(c)
			}
		})
		defer l.Close()
	}
	defer group.Wait()
	defer func() {
		cancel()
		for _, st := range []*stack{client, guests[0], guests[1]} {
			st.Close()
		}
	}()
	if err := s.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	if err := checkpointOf(ctx, p, s, 0); err != nil {
		t.Fatal(err)
	}

	var c net.Conn
	client.in(t, func() (err error) { c, err = net.DialTimeout("tcp", guestIP+serverPort, 20*time.Second); return err })
	defer c.Close()
	c.SetDeadline(time.Now().Add(100 * time.Second))
	kill := func() {
		mu.Lock()
		if asked != nil {
			t.Errorf("two stacks in step, and checkpoints are asked for: %v", asked)
		}
		mu.Unlock()
		die()
		guests[0].Close()
		ports[0].Close()
		if err := s.Pause(ctx); err != nil {
			t.Error(err)
		}
		if err := s.Failover(); err != nil {
			t.Error(err)
		}
		if err := s.Resume(ctx); err != nil {
			t.Error(err)
		}
		active.Store(1)
	}
	const n = 8 << 20
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
	t.Logf("%d packets matched, %d of the secondary's left, %d input packets were dropped there", ps.Matched, ports[1].left.Load(), ss.Refused)
}
