package protect

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate"
)

// ProxyConfig says how a [Proxy] works. Uplink and Deliver are required. What is
// not about the host's own ends is the same on both hosts, or they refuse each
// other.
type ProxyConfig struct {
	Instance uint32 // numbers the NICs of a guest
	Uplink   Uplink // owned by Run, which closes it

	// Deliver gives a packet, which is valid during the call and is not to be
	// changed, to the guest's NIC. It must not wait for the guest, nor call the
	// Proxy. An error means that the guest's ring is full. It is called by one
	// goroutine at a time, while the guest runs.
	Deliver func(packet []byte) error

	// Continuous compares nothing: all output waits for its checkpoint. Without it
	// output leaves as soon as both guests have said the same, and the flows of
	// those who never agree wait for checkpoints, until they are tried again
	// (CompareAlways tries always). PassUncompared lets leave at once what cannot
	// be compared. See proxy.PrimaryConfig, as for Compare.
	Continuous, CompareAlways, PassUncompared bool
	Compare                                   compare.Config

	// Limit bounds the output that a side keeps, in bytes. 0: proxy.DefaultLimit.
	Limit int
	// VNetHdr is the length, in bytes, of the virtio-net header that each packet
	// of the guest and of the uplink begins with.
	VNetHdr int

	// Announce is how often, and how fast, the network is told where the guest is
	// after a takeover; the Proxy sets its Neighbors, VNetHdr and Gate itself. Rounds
	// less than 0: it is not told.
	Announce proxy.AnnounceConfig
	Events   *event.Bus // is told which flows differ; nil: nobody
}

// A Proxy is the [Network] of a guest whose output is compared: what arrives on the
// host of the primary is given to both guests, and what they both say leaves at
// once, without waiting for a checkpoint. It is one handle for the life of the
// guest. Below it are the two sides of package colo/proxy, one after the other, for
// any number of changes; connections that were opened before a takeover live on
// through it and through those that follow.
//
// When this host takes over, the network is told by Announce where the guest is now,
// by the addresses that its own frames, on either host, have shown.
//
// Before a survivor leads for the first time after a takeover, its new side is handed the
// connections that the old one still translates. For that moment the guest's packets get
// filter.ErrFull, and those of the network wait; none is lost.
type Proxy struct {
	cfg       ProxyConfig
	edge      filter.Edge
	neighbors proxy.Neighbors
	room      chan struct{}

	ownership

	started chan struct{} // closed by Run, which has set host
	host    NetworkHost
	out     uplinkWriter

	giving  chan struct{} // of capacity one: full while a packet of the network is given to a side
	sending sync.RWMutex  // held for reading while a packet of the guest is given to a side

	mu      sync.RWMutex  // of what is below; not held while a side is called that may call the host
	changed chan struct{} // closed and replaced when something below changes
	runs    bool          // the guest runs
	faces   bool          // the world talks to the guest here, which may be paused for a moment
	swaps   bool          // the guest's packets are refused, and the network's wait
	first   *proxy.Primary
	second  *proxy.Secondary // not nil: this side follows, or has taken over and not led since
	lane    *lane
	stop    func()        // ends the Run of the present side
	ended   chan struct{} // closed when the Run of the present side has returned; nil: it does not run
	spawn   func(func())  // on a goroutine that Run waits for; nil: Run does not run
	fail    context.CancelCauseFunc
	ctx     context.Context
	past    event.Latency // how long the sides before the present one have kept packets
}

var (
	_ Sided             = (*Proxy)(nil)
	_ colo.OutputHolder = (*Proxy)(nil)
)

// NewProxy makes a Proxy.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.Uplink == nil || cfg.Deliver == nil {
		return nil, errors.New("protect: ProxyConfig needs an Uplink and Deliver")
	}
	if cfg.VNetHdr < 0 || cfg.VNetHdr > 64 {
		return nil, fmt.Errorf("protect: a virtio-net header of %d bytes", cfg.VNetHdr)
	}
	if cfg.Limit == 0 {
		cfg.Limit = proxy.DefaultLimit
	}
	n := &Proxy{
		cfg: cfg, room: make(chan struct{}, 1), started: make(chan struct{}), changed: make(chan struct{}), lane: newLane(),
		giving: make(chan struct{}, 1),
	}
	n.out.uplink = cfg.Uplink
	n.edge.Checkpoint = func() { n.ask(event.CauseDivergence) }
	n.first = n.newPrimary()
	return n, nil
}

// guestless stands for the VM of a side, and does nothing: the job pauses the
// guest, and says so by Runs.
type guestless struct{}

func (guestless) Pause(context.Context) error  { return nil }
func (guestless) Resume(context.Context) error { return nil }

// newPrimary makes a primary's side, in the state of the guest.
func (n *Proxy) newPrimary() *proxy.Primary {
	p := proxy.NewPrimary(proxy.PrimaryConfig{
		VM: guestless{}, Deliver: n.cfg.Deliver, RequestCheckpoint: n.ask,
		Continuous: n.cfg.Continuous, CompareAlways: n.cfg.CompareAlways, PassUncompared: n.cfg.PassUncompared, Compare: n.cfg.Compare,
		Gate: proxyGate{n}, Events: n.cfg.Events, Limit: n.cfg.Limit, VNetHdr: n.cfg.VNetHdr,
	})
	if !n.runs {
		p.Pause(context.Background()) // never fails
	}
	return p
}

func (n *Proxy) newSecondary() *proxy.Secondary {
	return proxy.NewSecondary(proxy.SecondaryConfig{
		VM: guestless{}, Deliver: n.cfg.Deliver, Continuous: n.cfg.Continuous, Limit: n.cfg.Limit, VNetHdr: n.cfg.VNetHdr,
		Rewriter: filter.RewriterConfig{Edge: &n.edge, Untranslatable: func() { n.ask(event.CauseDivergence) }},
		Gate:     proxyGate{n},
	})
}

// ask asks for a checkpoint.
func (n *Proxy) ask(cause event.Cause) {
	select {
	case <-n.started:
		if n.host.Checkpoint != nil {
			n.host.Checkpoint(cause)
		}
	default:
	}
}

// proxyGate is the job's gate, which is known when Run is called.
type proxyGate struct{ n *Proxy }

func (g proxyGate) Open() bool {
	select {
	case <-g.n.started:
		return g.n.host.Gate.Open()
	default:
		return false
	}
}

func (g proxyGate) Opened() <-chan struct{} {
	select {
	case <-g.n.started:
		return g.n.host.Gate.Opened()
	default:
		return g.n.started
	}
}

// WritePacket takes a copy of a packet from the guest, whichever side its host is.
// It never waits; with filter.ErrFull nothing was taken, and the device tries again
// after Room. A packet that is empty or too long is a *filter.Error.
func (n *Proxy) WritePacket(p []byte) error {
	n.sending.RLock()
	defer n.sending.RUnlock()
	first, second, err := n.sender()
	if err != nil {
		return err
	}
	n.neighbors.FromGuest(p, n.cfg.VNetHdr)
	if second != nil {
		return second.WritePacket(p)
	}
	return first.WritePacket(p)
}

// ComposePacket does what WritePacket does, for a packet of size bytes that does not
// exist yet: compose writes it into memory of the Proxy, as for
// proxy.Primary.ComposePacket, and must not call the Proxy. A NIC gathers a large
// segment (TSO) there from its guest's memory.
func (n *Proxy) ComposePacket(size int, compose func(packet []byte) bool) error {
	n.sending.RLock()
	defer n.sending.RUnlock()
	first, second, err := n.sender()
	if err != nil {
		return err
	}
	heard := func(p []byte) bool {
		if !compose(p) {
			return false
		}
		n.neighbors.FromGuest(p, n.cfg.VNetHdr)
		return true
	}
	if second != nil {
		return second.ComposePacket(size, heard)
	}
	return first.ComposePacket(size, heard)
}

// ComposeAtMost does what ComposePacket does, for a packet whose length is known only when it
// is there, as for proxy.Primary.ComposeAtMost. compose must not wait: a switchover would wait for
// it. It returns 0 if there is nothing to read, and its caller waits for more.
func (n *Proxy) ComposeAtMost(most int, compose func(packet []byte) int) error {
	n.sending.RLock()
	defer n.sending.RUnlock()
	first, second, err := n.sender()
	if err != nil {
		return err
	}
	heard := func(p []byte) int {
		k := compose(p)
		if k > 0 && k <= len(p) {
			n.neighbors.FromGuest(p[:k], n.cfg.VNetHdr)
		}
		return k
	}
	if second != nil {
		return second.ComposeAtMost(most, heard)
	}
	return first.ComposeAtMost(most, heard)
}

// sender returns the sides, of which the second, if there is one, takes the guest's
// packets, or filter.ErrFull while none does. sending is held.
func (n *Proxy) sender() (*proxy.Primary, *proxy.Secondary, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.swaps {
		return nil, nil, filter.ErrFull
	}
	return n.first, n.second, nil
}

// Room returns a channel that is sent to when there may be room again for a packet
// that was refused.
func (n *Proxy) Room() <-chan struct{} { return n.room }

func (n *Proxy) tellRoom() {
	select {
	case n.room <- struct{}{}:
	default:
	}
}

// side returns the present side; one of the two is nil.
func (n *Proxy) side() (*proxy.Primary, *proxy.Secondary) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.second != nil {
		return nil, n.second
	}
	return n.first, nil
}

// onSide calls lead with the present side if that is a primary's, and follow if it is a
// secondary's.
func (n *Proxy) onSide(lead func(*proxy.Primary) error, follow func(*proxy.Secondary) error) error {
	if p, s := n.side(); s == nil {
		return lead(p)
	} else {
		return follow(s)
	}
}

var errSide = errors.New("protect: a step of the other side's")

func ofSecondary(*proxy.Secondary) error { return errSide }
func ofPrimary(*proxy.Primary) error     { return errSide }

// Mark implements Network.
func (n *Proxy) Mark(epoch uint64) error {
	return n.onSide(func(p *proxy.Primary) error {
		if err := p.Mark(epoch); err != nil {
			return err
		}
		return n.edge.Mark(epoch)
	}, ofSecondary)
}

// Received implements Network.
func (n *Proxy) Received(epoch uint64) error {
	return n.onSide(func(p *proxy.Primary) error { return errors.Join(n.edge.Received(epoch), p.Received(epoch)) }, ofSecondary)
}

// Loaded implements Network.
func (n *Proxy) Loaded(epoch uint64) error {
	return n.onSide(func(p *proxy.Primary) error { return p.Loaded(epoch) }, ofSecondary)
}

// Commit implements Network.
func (n *Proxy) Commit(epoch uint64) error {
	return n.onSide(ofPrimary, func(s *proxy.Secondary) error { return s.Commit(epoch) })
}

// Resumed implements Network.
func (n *Proxy) Resumed(epoch uint64) error {
	return n.onSide(ofPrimary, func(s *proxy.Secondary) error { return s.Resumed(epoch) })
}

// Failover implements Network. On a host that takes over, the network is told.
func (n *Proxy) Failover() error {
	return n.onSide(func(p *proxy.Primary) error { return errors.Join(n.edge.Failover(), p.Failover()) }, func(s *proxy.Secondary) error {
		err := s.Failover()
		n.announce()
		return err
	})
}

// announce tells the network where the guest is, on a goroutine that Run waits
// for.
func (n *Proxy) announce() {
	n.mu.Lock()
	defer n.mu.Unlock()
	cfg, ctx := n.cfg.Announce, n.ctx
	cfg.Neighbors, cfg.VNetHdr, cfg.Gate = n.neighbors.All(), n.cfg.VNetHdr, proxyGate{n}
	if n.spawn == nil || len(cfg.Neighbors) == 0 || cfg.Rounds < 0 {
		return
	}
	n.spawn(func() { proxy.Announce(ctx, &n.out, cfg) }) // what is wrong with the uplink is Run's to say
}

// HeldOutput returns what the guest has sent and may not leave yet. (A
// colo.OutputHolder.)
func (n *Proxy) HeldOutput() colo.Held {
	if p, s := n.side(); s == nil {
		return p.HeldOutput()
	}
	return colo.Held{}
}

// OutputLatency returns how long the packets that have left were kept, from when the
// guest sent them until the uplink had taken them: over all sides that the Proxy has
// been on.
func (n *Proxy) OutputLatency() event.Latency {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.latency()
}

// latency does what OutputLatency does, with n.mu held.
func (n *Proxy) latency() event.Latency {
	l := n.first.OutputLatency()
	if n.second != nil {
		l = n.second.OutputLatency()
	}
	l.Merge(&n.past)
	return l
}

// keepLatency is called before another side takes the place of the present one, with
// n.mu held for writing.
func (n *Proxy) keepLatency() { n.past = n.latency() }

// Register implements Network.
func (n *Proxy) Register(reg *vmstate.Registry) error {
	p, s := n.side()
	var err error
	if s != nil {
		err = reg.Register(s.Entry(n.cfg.Instance), s)
	} else {
		err = reg.Register(p.Entry(n.cfg.Instance), p)
	}
	if err == nil {
		err = reg.Register(n.edge.Entry(n.cfg.Instance), &n.edge)
	}
	if err == nil {
		err = reg.Register(n.neighbors.Entry(n.cfg.Instance), &n.neighbors)
	}
	return err
}

// Stats returns the counts of the present side; the other is nil.
func (n *Proxy) Stats() (*proxy.PrimaryStats, *proxy.SecondaryStats) {
	if p, s := n.side(); s == nil {
		st := p.Stats()
		return &st, nil
	} else {
		st := s.Stats()
		return nil, &st
	}
}

// Neighbors returns by which addresses the network finds the guest.
func (n *Proxy) Neighbors() []proxy.Neighbor { return n.neighbors.All() }

// Drain implements Network.
func (n *Proxy) Drain(ctx context.Context) error {
	return drain(ctx, func() (left, dead bool) {
		p, s := n.side()
		if s != nil {
			st := s.Stats().Keep
			left = st.Queued+st.Inherited > 0
		} else {
			left = p.Stats().Queued > 0
		}
		n.mu.RLock()
		defer n.mu.RUnlock()
		return left, n.spawn == nil
	})
}

// Link implements Sided.
func (n *Proxy) Link() (name, terms string) {
	c := &n.cfg
	how := "compared"
	switch {
	case c.Continuous:
		how = "continuous"
	case c.Compare.Strict:
		how = "compared as by QEMU"
	}
	return fmt.Sprint(c.Instance), fmt.Sprintf("%s, at most %d bytes, virtio-net headers of %d", how, c.Limit, c.VNetHdr)
}
