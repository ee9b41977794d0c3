package compare_test

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/netns"
	"github.com/gocolo/lockstep/internal/packet"
)

// A link is a bad one.
type link struct {
	loss, dup, late float64 // of each packet, the probability
	delay           time.Duration
	out             func(p []byte)

	mu   sync.Mutex
	rng  *rand.Rand
	wait packets
	n    int
	wake chan struct{}

	lost, doubled, overtaken int

	vnet             int // as the world's
	longest, partial int
}

type delayed struct {
	due time.Time
	n   int
	p   []byte
}

type packets []delayed

func (q packets) Len() int { return len(q) }
func (q packets) Less(i, j int) bool {
	if c := q[i].due.Compare(q[j].due); c != 0 {
		return c < 0
	}
	return q[i].n < q[j].n
}
func (q packets) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *packets) Push(x any)   { *q = append(*q, x.(delayed)) }
func (q *packets) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func newLink(seed uint64, out func(p []byte)) *link {
	return &link{loss: 0.001, dup: 0.001, late: 0.002, delay: 500 * time.Microsecond, out: out,
		rng: rand.New(rand.NewPCG(seed, 1)), wake: make(chan struct{}, 1)}
}

// WritePacket implements [compare.PacketWriter].
func (l *link) WritePacket(p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, len(p))
	if h := packet.VNetOf(p, l.vnet); h != nil && h.Flags()&packet.VNetNeedsCsum != 0 {
		l.partial++
	}
	if l.rng.Float64() < l.loss {
		l.lost++
		return nil
	}
	times := 1
	if l.rng.Float64() < l.dup {
		l.doubled++
		times = 2
	}
	for range times {
		due := time.Now().Add(l.delay)
		if l.rng.Float64() < l.late {
			l.overtaken++
			due = due.Add(3 * time.Millisecond)
		}
		l.n++
		heap.Push(&l.wait, delayed{due, l.n, append([]byte(nil), p...)})
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// packets returns how many have come out of the link, or will.
func (l *link) packets() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *link) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		var next delayed
		wait := time.Hour
		if len(l.wait) > 0 {
			if wait = time.Until(l.wait[0].due); wait <= 0 {
				next = heap.Pop(&l.wait).(delayed)
			}
		}
		l.mu.Unlock()
		if next.p != nil {
			l.out(next.p)
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// socketpair returns the two ends of a connection.
func socketpair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	return ends[0], ends[1]
}

// A world is a client, a link, and two guests of whom the client sees one.
//
//	client = up, down = mirror ------- primary's guest
//	              |         \                |
//	          comparison ----------<---------+
//	              |            \
//	              +---<--- rewriter = secondary's guest
type world struct {
	client, primary, secondary *netns.Stack
	up, down                   *link

	cmp   *compare.Comparer
	chain *filter.Chain // of the secondary
	rew   *filter.Rewriter

	vnet int // bytes of virtio-net header before each frame

	cut     atomic.Bool
	drops   atomic.Int64 // of so many packets to the secondary's guest one is dropped; 0: none
	given   atomic.Int64
	bare    atomic.Bool   // there is no secondary: what arrives goes to the primary's guest only
	toStack *filter.Chain // of the primary
	ending  context.CancelFunc
	ends    []net.Conn // between the hosts

	mu       sync.Mutex
	reasons  []compare.Reason
	problems []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOver(t, func(*link) {})
}

// newWorldOver is newWorld with other links.
func newWorldOver(t *testing.T, change func(*link)) *world {
	t.Helper()
	return newWorldOf(t, tap.Config{}, 0, change)
}

// newWorldOf is newWorldOver with other interfaces. The clock of the secondary's
// stack is ahead of the primary's, in units of a timestamp.
func newWorldOf(t *testing.T, dev tap.Config, ahead uint32, change func(*link)) *world {
	t.Helper()
	return newWorldWith(t, dev, ahead, change, false)
}

// newWorldWith is newWorldOf with a toll, if wanted, in the place of the comparison.
func newWorldWith(t *testing.T, dev tap.Config, ahead uint32, change func(*link), tolled bool) *world {
	t.Helper()
	w := &world{client: netns.New(t, false, dev), primary: netns.New(t, true, dev), secondary: netns.New(t, true, dev), vnet: dev.VNetHdrLen}
	w.up, w.down = newLink(1, w.arrive), newLink(2, func(p []byte) {
		netns.Complete(p, w.vnet)
		w.client.WritePacket(p)
	})
	t.Cleanup(func() {
		if t.Failed() {
			s, queued := w.cmp.Stats()
			w.mu.Lock()
			defer w.mu.Unlock()
			t.Logf("%+v; %d packets wait to leave; reasons %v, problems %q; frames lost: %d, %d, %d", s, queued,
				w.reasons[:min(len(w.reasons), 10)], w.problems[:min(len(w.problems), 10)],
				w.client.Lost(), w.primary.Lost(), w.secondary.Lost())
			t.Logf("rewriter: %+v", w.rewritten())
			for name, h := range map[string]*netns.Stack{"client": w.client, "primary": w.primary, "secondary": w.secondary} {
				h.In(t, func() error {
					sockets, _ := exec.Command("ss", "-tinmo").CombinedOutput() // where there is one
					counts, _ := exec.Command("nstat", "-as").CombinedOutput()
					t.Logf("%s: %s%s", name, sockets, counts)
					return nil
				})
			}
		}
	})
	w.up.vnet, w.down.vnet = w.vnet, w.vnet
	change(w.up)
	change(w.down)
	mirrored, mirror := socketpair(t)
	compared, compares := socketpair(t)
	w.ends = []net.Conn{mirror, mirrored, compares, compared}

	// The primary.
	w.cmp = compare.NewComparer(compare.Config{
		Marks: true, PatientAcks: true, ReleaseRetransmits: true, LowerAcks: true,
		Timeout: time.Minute, AckTimeout: ackPatience, MaxQueue: 1 << 14, MaxBytes: 256 << 20,
	})
	w.cmp.Diverged = func(r compare.Reason) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.reasons = append(w.reasons, r)
	}
	out := filter.NewOutbox(64 << 20)
	out.Lost = func() { w.problem("the mirror lost a packet") }
	w.toStack = &filter.Chain{Deliver: func(_ filter.Direction, f filter.Frame) error {
		netns.Complete(f.Data, w.vnet)
		return w.primary.WritePacket(f.Data)
	}}
	w.insert(t, w.toStack, filter.Entry{ID: "m0", Filter: filter.Mirror{Out: out}, Queue: filter.QueueTX})

	// The secondary.
	back := filter.NewOutbox(64 << 20)
	back.Lost = func() { w.problem("a packet to compare was lost") }
	in := filter.NewInlet()
	w.rew = filter.NewRewriter(filter.RewriterConfig{KeepLate: true})
	w.chain = &filter.Chain{Deliver: func(d filter.Direction, f filter.Frame) error {
		if d == filter.ToGuest {
			if n := w.drops.Load(); n > 0 && w.given.Add(1)%n == 0 {
				return nil // its ring is full
			}
			netns.Retime(f.Data, w.vnet, 0, -ahead)
			netns.Complete(f.Data, w.vnet)
			return w.secondary.WritePacket(f.Data)
		}
		return w.down.WritePacket(f.Data)
	}}
	w.insert(t, w.chain, filter.Entry{ID: "f1", Filter: filter.Redirector{}, Queue: filter.QueueTX})
	w.insert(t, w.chain, filter.Entry{ID: "f2", Filter: filter.Redirector{Out: back}, Queue: filter.QueueRX})
	w.insert(t, w.chain, filter.Entry{ID: "rew0", Filter: w.rew})

	// The checkpoint with which it all begins.
	for _, step := range []func(uint64) error{w.cmp.Mark, out.Mark, back.Mark, w.cmp.Received, w.chain.Commit, in.Commit, w.cmp.Loaded} {
		if err := step(0); err != nil {
			t.Fatal(err)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	primary, ending := context.WithCancel(ctx)
	w.ending = ending
	var wg sync.WaitGroup
	marks := func(on func(uint64) error) filter.ConnConfig {
		return filter.ConnConfig{Marks: true, OnMark: on, VNetHdr: w.vnet > 0, VNetHdrLen: w.vnet}
	}
	wg.Go(func() { out.Run(primary, filter.NewConn(mirror, marks(nil))) })
	wg.Go(func() {
		in.Run(ctx, filter.NewConn(mirrored, marks(in.Mark)), func(f filter.Frame) error {
			_, err := w.chain.Inject("f1", filter.ToGuest, f)
			return err
		})
	})
	wg.Go(func() { back.Run(ctx, filter.NewConn(compares, marks(nil))) })
	said := filter.NewConn(compared, marks(w.cmp.SecondaryMark))
	if tolled {
		g := &toll{out: w.down}
		wg.Go(func() {
			for {
				p, err := said.ReadPacket()
				if err != nil {
					return
				}
				g.secondary(p, w.vnet)
			}
		})
		wg.Go(func() { w.primary.Each(func(p []byte) { g.primary(p, w.vnet) }) })
	} else {
		wg.Go(func() { w.cmp.ServeSecondary(primary, said) })
		wg.Go(func() { w.cmp.ServePrimary(primary, w.primary) })
	}
	wg.Go(func() { w.cmp.Run(primary, w.down) })
	wg.Go(func() {
		w.secondary.Each(func(p []byte) {
			netns.Retime(p, w.vnet, ahead, 0)
			w.chain.Send(filter.FromGuest, filter.Frame{Data: p, VNetHdr: w.vnet})
		})
	})
	wg.Go(func() { notOurs(func() { w.client.Each(func(p []byte) { w.up.WritePacket(p) }) }) })
	wg.Go(func() { w.up.run(ctx) })
	wg.Go(func() { notOurs(func() { w.down.run(ctx) }) })
	t.Cleanup(func() {
		cancel()
		for _, c := range w.ends {
			c.Close()
		}
		for _, h := range []*netns.Stack{w.client, w.primary, w.secondary} {
			h.Close()
		}
		wg.Wait()
	})
	return w
}

// notOurs runs fn so that a profile does not take its time for ours.
func notOurs(fn func()) {
	pprof.Do(context.Background(), pprof.Labels("outside", "1"), func(context.Context) { fn() })
}

func (w *world) insert(t *testing.T, c *filter.Chain, e filter.Entry) {
	t.Helper()
	if err := c.Insert(e, filter.Position{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) problem(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, s)
}

// arrive is where the client's packets come off the link.
func (w *world) arrive(p []byte) {
	if w.bare.Load() {
		w.primary.WritePacket(p)
		return
	}
	if w.cut.Load() {
		w.chain.Send(filter.ToGuest, filter.Frame{Data: p, VNetHdr: w.vnet})
		return
	}
	w.toStack.Send(filter.ToGuest, filter.Frame{Data: w.cmp.Inbound(p, w.vnet), VNetHdr: w.vnet})
}

// cutOff takes the primary away, with its guest, its comparison and all that
// waits there, without a word; the secondary goes on alone.
func (w *world) cutOff(t *testing.T) {
	t.Helper()
	w.ending()
	for _, c := range w.ends {
		c.Close()
	}
	w.primary.Close()
	if err := w.chain.Failover(); err != nil {
		t.Error(err)
	}
	w.cut.Store(true)
}

// rewritten returns the rewriter's counts, while it is in use.
func (w *world) rewritten() (s filter.RewriterStats) {
	w.chain.Do(func() { s = w.rew.Stats() })
	return s
}

// check holds the world to what was promised, and says what happened.
func (w *world) check(t *testing.T) {
	t.Helper()
	s, queued := w.cmp.Stats()
	for end := time.Now().Add(ackPatience); queued > 0 && !w.cut.Load() && time.Now().Before(end); s, queued = w.cmp.Stats() {
		time.Sleep(time.Millisecond) // an acknowledgment that the secondary's guest owes
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reasons) > 0 {
		t.Errorf("diverged %d times: %v\n%+v", len(w.reasons), w.reasons[:min(len(w.reasons), 10)], s)
	}
	for _, p := range w.problems {
		t.Error(p)
	}
	for _, h := range []*netns.Stack{w.client, w.secondary} {
		if n := h.Lost(); n > 0 {
			t.Errorf("an interface lost %d packets", n)
		}
	}
	if !w.cut.Load() && queued > 0 {
		t.Errorf("%d packets wait to leave", queued)
	}
	t.Logf("comparison: matched %d, lowered %d, merged %d, passed %d, dropped %d, held %d", s.Matched, s.Lowered, s.Merged, s.Passed, s.Dropped, s.Held)
	t.Logf("rewriter: %+v", w.rewritten())
	for name, l := range map[string]*link{"up": w.up, "down": w.down} {
		l.mu.Lock()
		t.Logf("link %s: %d packets, %d lost, %d doubled, %d late", name, l.n, l.lost, l.doubled, l.overtaken)
		l.mu.Unlock()
	}
}
