package protect

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// benchHosts are two hosts of one guest, over TCP on loopback.
type benchHosts struct {
	b       *testing.B
	ctx     context.Context
	ports   [2]*Port
	terms   [2]PortConfig
	store   *failovertest.Store
	guest   colotest.GuestConfig
	mu      sync.Mutex
	commits []event.CheckpointCommit // of the primary
	group   sync.WaitGroup           // ports
}

// A benchHost is one of them that runs.
type benchHost struct {
	job   *Job
	guest *colotest.Guest
	group sync.WaitGroup
	stop  context.CancelFunc

	mu    sync.Mutex
	conns []net.Conn // that it has dialled
}

func newBenchHosts(b *testing.B, secure bool, guest colotest.GuestConfig) *benchHosts {
	b.Helper()
	x := &benchHosts{b: b, store: new(failovertest.Store), guest: guest}
	ctx, cancel := context.WithCancel(context.Background())
	x.ctx, x.terms = ctx, [2]PortConfig{{Insecure: true}, {Insecure: true}}
	if secure {
		authority := newAuthority(b)
		for i, name := range []string{"a", "b"} {
			x.terms[i] = PortConfig{TLS: authority.host(b, name)}
		}
	}
	for i := range x.ports {
		var err error
		if x.ports[i], err = Listen("127.0.0.1:0", x.terms[i]); err != nil {
			b.Skip(err)
		}
		x.group.Go(func() { x.ports[i].Serve(ctx) })
	}
	b.Cleanup(func() { cancel(); x.group.Wait() })
	return x
}

// boot starts a host, 0 or 1. prepare, if it is not nil, may write the guest's memory.
func (x *benchHosts) boot(i int, start bool, prepare func(mem []byte), change func(*Config)) *benchHost {
	x.b.Helper()
	names := [2]string{"a", "b"}
	h := new(benchHost)
	var err error
	if h.guest, err = colotest.NewGuest(x.guest); err != nil {
		x.b.Fatal(err)
	}
	if prepare != nil {
		prepare(h.guest.Memory())
	}
	bus := new(event.Bus)
	event.Subscribe(bus, func(c event.CheckpointCommit) {
		if c.Mode == event.ModePrimary {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.commits = append(x.commits, c)
		}
	})
	cfg := Config{
		Name: "g", Host: names[i], Guest: h.guest, Start: start, Arbiter: failover.NewStoreArbiter(x.store), Events: bus, CheckpointDelay: 20 * time.Millisecond,
		Peer: Peer{Port: x.ports[i], PortConfig: x.terms[i], Dialer: func(ctx context.Context) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", x.ports[1-i].Addr().String())
			if err == nil {
				h.mu.Lock()
				h.conns = append(h.conns, conn)
				h.mu.Unlock()
			}
			return conn, err
		}},
	}
	if x.terms[i].TLS != nil {
		cfg.Peer.Name = names[1-i]
	}
	if change != nil {
		change(&cfg)
	}
	if h.job, err = New(cfg); err != nil {
		x.b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(x.ctx)
	h.stop = cancel
	h.group.Go(func() { h.guest.Run(ctx) })
	h.group.Go(func() { h.job.Run(ctx) })
	return h
}

// cut breaks all connections that the host has dialled.
func (h *benchHost) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
}

func (h *benchHost) end() {
	h.stop()
	h.group.Wait()
	h.guest.Close()
}

func (x *benchHosts) is(h *benchHost, s State) {
	x.b.Helper()
	ctx, cancel := context.WithTimeout(x.ctx, 2*time.Minute)
	defer cancel()
	if got, err := h.job.Wait(ctx, s); got != s || err != nil {
		x.b.Fatalf("%v, %v, want %v: %v", got, err, s, h.job.Query().LastError)
	}
}

// taken returns the commits since the last call.
func (x *benchHosts) taken() []event.CheckpointCommit {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.commits
	x.commits = nil
	return list
}

// BenchmarkLossToRunning is the time from the moment in which a secondary knows that its
// primary is lost, and an operator or a fencer says so, to that in which its guest runs. No
// arbiter is asked, and there is no disk.
func BenchmarkLossToRunning(b *testing.B) {
	x := newBenchHosts(b, false, colotest.GuestConfig{Pages: 256, Touch: 8, Interval: time.Millisecond})
	var took []time.Duration
	for b.Loop() {
		x.store = new(failovertest.Store)
		follows := x.boot(1, false, nil, nil)
		leads := x.boot(0, true, nil, nil)
		x.is(leads, Protected)
		x.is(follows, Following)
		time.Sleep(50 * time.Millisecond) // a checkpoint or two
		// The primary falls silent, with all its connections.
		leads.cut()
		follows.cut()
		x.is(follows, Asking)
		begun := time.Now()
		if err := follows.job.Fenced(); err != nil {
			b.Fatal(err)
		}
		for follows.guest.Paused() {
			time.Sleep(20 * time.Microsecond)
		}
		took = append(took, time.Since(begun))
		leads.end()
		follows.end()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkProtectAgain is the longest pause of a guest of 1 GiB, which writes 8 pages each
// millisecond, while a secondary that was lost is replaced by one that has nothing, to the
// longest pause of its checkpoints in the two seconds before: medians of the turns.
func BenchmarkProtectAgain(b *testing.B) {
	if testing.Short() {
		b.Skip("3 GiB of memory")
	}
	const size = 1 << 30
	for _, name := range []string{"copy", "no copy"} {
		b.Run(name, func(b *testing.B) {
			benchmarkProtectAgain(b, size, func(c *Config) { c.NoMemoryCopy = name == "no copy" })
		})
	}
}

func benchmarkProtectAgain(b *testing.B, size uint64, change func(*Config)) {
	x := newBenchHosts(b, false, colotest.GuestConfig{Memory: size, Pages: 4000, Touch: 8, Interval: time.Millisecond})
	leads := x.boot(0, true, func(mem []byte) {
		for at := size / 8; at < size; at += ram.PageSize {
			mem[at] = byte(at>>12) | 1 // no page is zero
		}
	}, change)
	defer leads.end()
	longest := func(list []event.CheckpointCommit) (p time.Duration) {
		for _, c := range list {
			p = max(p, time.Duration(c.PauseNS))
		}
		return p
	}
	var before, during []time.Duration // of each turn
	var took time.Duration
	for b.Loop() {
		follows := x.boot(1, false, nil, change)
		x.is(leads, Protected)
		x.taken()
		time.Sleep(2 * time.Second)
		before = append(before, longest(x.taken()))
		follows.end()
		x.is(leads, Alone)
		x.taken()
		begun := time.Now()
		follows = x.boot(1, false, nil, change)
		x.is(leads, Protected)
		took += time.Since(begun)
		time.Sleep(100 * time.Millisecond)
		during = append(during, longest(x.taken()))
		follows.end()
		x.is(leads, Alone)
	}
	slices.Sort(before)
	slices.Sort(during)
	each := before[len(before)/2]
	b.ReportMetric(float64(during[len(during)/2])/float64(each), "pause/pause")
	b.ReportMetric(float64(each.Microseconds()), "µs-pause-before")
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms-to-protected")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSynchronisation is the rate at which 512 MiB of memory reach a new secondary, to
// that of the same bytes over one connection of the same kind, which nobody looks at.
func BenchmarkSynchronisation(b *testing.B) {
	const size = 512 << 20
	for _, name := range []string{"plain", "TLS"} {
		b.Run(name, func(b *testing.B) {
			x := newBenchHosts(b, name == "TLS", colotest.GuestConfig{Memory: size, Pages: 256, Touch: 1, Interval: 10 * time.Millisecond})
			leads := x.boot(0, true, func(mem []byte) { rand.Read(mem[size/16:]) }, nil)
			defer leads.end()
			var ours, bound []time.Duration
			for b.Loop() {
				x.is(leads, Alone)
				x.taken()
				follows := x.boot(1, false, nil, nil)
				x.is(leads, Synchronising)
				begun := time.Now()
				x.is(leads, Protected)
				ours = append(ours, time.Since(begun))
				follows.end()
				bound = append(bound, x.carry(name == "TLS", leads.guest.Memory()))
			}
			best := slices.Min(bound)
			b.ReportMetric(float64(best)/float64(slices.Min(ours)), "of-bound")
			b.ReportMetric(size/best.Seconds()/1e6, "MB/s-bound")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// carry is how long memory takes over a connection.
func (x *benchHosts) carry(secure bool, mem []byte) time.Duration {
	x.b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		x.b.Skip(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		if secure {
			conn = tls.Server(conn, x.terms[1].TLS)
		}
		// It is put where a page is, as a secondary does.
		_, err = io.ReadFull(conn, make([]byte, len(mem)))
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		x.b.Fatal(err)
	}
	defer conn.Close()
	if secure {
		cfg := x.terms[0].TLS.Clone()
		cfg.ServerName = "b"
		conn = tls.Client(conn, cfg)
	}
	begun := time.Now()
	for at := 0; at < len(mem); at += 1 << 20 {
		if _, err := conn.Write(mem[at:min(at+1<<20, len(mem))]); err != nil {
			x.b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		x.b.Fatal(err)
	}
	return time.Since(begun)
}
