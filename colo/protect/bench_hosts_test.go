package protect

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// benchHosts are two hosts of one guest, over TCP on loopback.
type benchHosts struct {
	b       *testing.B
	ctx     context.Context
	ports   [2]*Port
	terms   [2]PortConfig
	store   *failovertest.Store
	guest   colotest.VMConfig
	mu      sync.Mutex
	commits []event.CheckpointCommit // of the primary
	stops   time.Time                // when a guest began to stand still last
	stood   time.Duration            // until the next one ran, on either host
	group   sync.WaitGroup           // ports
}

// timedGuest is the guest of a host that notes when it stands still and when it runs.
type timedGuest struct {
	*colotest.VM
	x    *benchHosts
	host *benchHost
}

func (g timedGuest) Pause(ctx context.Context) error {
	at := time.Now()
	if g.host.job.State() == SwitchingOver {
		g.x.mu.Lock()
		g.x.stops = at
		g.x.mu.Unlock()
	}
	return g.VM.Pause(ctx)
}

func (g timedGuest) Resume(ctx context.Context) error {
	err := g.VM.Resume(ctx)
	at := time.Now()
	if g.host.job.State() == TakingOver {
		g.x.mu.Lock()
		g.x.stood = at.Sub(g.x.stops)
		g.x.mu.Unlock()
	}
	return err
}

// lastStood returns how long the guest stood still in the last switchover: both hosts have one clock.
func (x *benchHosts) lastStood() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stood
}

// A benchHost is one of them that runs.
type benchHost struct {
	job   *Job
	guest *colotest.VM
	group sync.WaitGroup
	stop  context.CancelFunc

	mu    sync.Mutex
	conns []net.Conn // that it has dialled
}

func newBenchHosts(b *testing.B, secure bool, guest colotest.VMConfig) *benchHosts {
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
	if h.guest, err = colotest.NewVM(x.guest); err != nil {
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
		Name: "g", Host: names[i], Guest: timedGuest{h.guest, x, h}, Start: start, Arbiter: failover.NewStoreArbiter(x.store), Events: bus, CheckpointDelay: 20 * time.Millisecond,
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
