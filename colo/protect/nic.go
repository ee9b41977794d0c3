package protect

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/vmstate"
)

// An Uplink is the connection of a guest to the network: a tap.Device, say, or a filter.Conn
// together with the Close of its connection. ReadPacket and WritePacket are called by one
// goroutine each; what ReadPacket returns is valid until the next call, and WritePacket keeps
// nothing. Close ends reads and writes that wait.
//
// Any other error of ReadPacket or WritePacket ends the job, since a host without a network
// cannot serve its guest. An Uplink drops the packet in place of returning an error that will
// pass, such as that of a UDP socket whose other end does not listen yet.
type Uplink interface {
	ReadPacket() ([]byte, error)
	WritePacket(p []byte) error
	io.Closer
}

// NICConfig says how a NIC works. Uplink is required.
type NICConfig struct {
	Instance uint32 // numbers the NICs of a guest
	Uplink   Uplink // owned by Run, which closes it
	// Deliver gives a packet to the guest, which is running; it must not wait.
	// Nil: packets from the network are dropped.
	Deliver func(p []byte)
	// Limit bounds the memory for the guest's packets; see filter.BufferConfig.
	Limit int
}

// A NIC is the Network of a guest whose output waits for the checkpoint that covers
// it, so that the secondary's guest remembers whatever the world has seen. Nothing
// is mirrored or compared. It is one handle for the life of the guest: a frame goes
// in by WritePacket or ComposePacket whatever side its host is.
//
// Each frame is written to the uplink only while the gate is open. Frames that
// were to leave when it shut stay in their order, and leave when it opens; they
// are dropped when this host begins to follow another, which has them too. That one
// does not know which of them have left: when the sides change, by a switchover too,
// a frame may leave twice, with the same content.
type NIC struct {
	cfg  NICConfig
	buf  *filter.Buffer
	full atomic.Pointer[func(event.Cause)]
	over atomic.Bool // Run has returned, or is about to

	ownership

	mu      sync.Mutex
	input   bool          // held while a packet is delivered
	follows bool          // another host delivers the packets
	turned  chan struct{} // closed and replaced when one of the two changes
	void    chan struct{} // closed and replaced when the buffer has dropped what was to leave
}

var _ Network = (*NIC)(nil)

// NewNIC makes a NIC.
func NewNIC(cfg NICConfig) (*NIC, error) {
	if cfg.Uplink == nil {
		return nil, errors.New("protect: NICConfig needs an Uplink")
	}
	n := &NIC{cfg: cfg, follows: true, turned: make(chan struct{}), void: make(chan struct{})}
	n.buf = filter.NewBuffer(filter.BufferConfig{Limit: cfg.Limit, Full: func() {
		if ask := n.full.Load(); ask != nil {
			(*ask)(event.CauseLimit)
		}
	}})
	return n, nil
}

// WritePacket takes a copy of a packet from the guest. It never waits; with
// filter.ErrFull nothing was taken, and the device tries again after Room.
func (n *NIC) WritePacket(p []byte) error { return n.buf.WritePacket(p) }

// ComposePacket does what WritePacket does, for a packet of size bytes that does not exist
// yet: compose writes it where it waits, as for filter.Buffer.ComposePacket, and may have
// to wait for that. A NIC gathers a large segment (TSO) there from its guest's memory.
func (n *NIC) ComposePacket(size int, compose func(packet []byte) bool) error {
	return n.buf.ComposePacket(size, compose)
}

// ComposeAtMost does what ComposePacket does, for a packet whose length is known only when it
// is there: compose reads it and returns its length, or 0, as for filter.Buffer.ComposeAtMost.
func (n *NIC) ComposeAtMost(most int, compose func(packet []byte) int) error {
	return n.buf.ComposeAtMost(most, compose)
}

// Room returns a channel that is sent to when there is room again for a packet
// that was refused.
func (n *NIC) Room() <-chan struct{} { return n.buf.Room() }

// Mark implements Network.
func (n *NIC) Mark(epoch uint64) error { return n.buf.Mark(epoch) }

// Received implements Network.
func (n *NIC) Received(epoch uint64) error { return n.buf.Received(epoch) }

// Loaded implements Network.
func (n *NIC) Loaded(epoch uint64) error { return n.buf.Loaded(epoch) }

// Resumed implements Network.
func (n *NIC) Resumed(epoch uint64) error { return n.buf.Resumed(epoch) }

// Failover implements Network.
func (n *NIC) Failover() error { return n.buf.Failover() }

// Commit implements Network.
func (n *NIC) Commit(epoch uint64) error {
	err := n.buf.Commit(epoch)
	if err == nil && epoch == 0 { // this host follows now: what was to leave is another's to send
		n.mu.Lock()
		close(n.void)
		n.void = make(chan struct{})
		n.follows = true
		n.turn()
		n.mu.Unlock()
	}
	return err
}

// number tells the NICs of a guest apart.
func (n *NIC) number() uint32 { return n.cfg.Instance }

// Register implements Network.
func (n *NIC) Register(reg *vmstate.Registry) error {
	return reg.Register(n.buf.Entry(n.cfg.Instance), n.buf)
}

// Input implements Network. A packet that comes while the guest stands still for a
// moment waits; one that comes to a host that follows is dropped.
func (n *NIC) Input(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.input = on; on {
		n.follows = false
	}
	n.turn()
}

// turn wakes who waits for a change of input or follows. n.mu is held.
func (n *NIC) turn() {
	close(n.turned)
	n.turned = make(chan struct{})
}

// errNotRun is the error of Drain of a NIC after Run has returned, and of a Proxy while Run
// does not run.
var errNotRun = errors.New("protect: the NIC does not run")

// Drain implements Network. Before Run has begun it waits for that as for everything else: a
// guest can be switched over in the moment in which its job starts Run's goroutine.
func (n *NIC) Drain(ctx context.Context) error {
	return drain(ctx, func() (left, dead bool) {
		// What the guest has inherited in a takeover leaves before what it has sent itself.
		st := n.buf.Stats()
		return st.Queued+st.Inherited > 0, n.over.Load()
	})
}

// drain waits until nothing is left that may leave. What is left on a network that is dead does not leave.
func drain(ctx context.Context, looks func() (left, dead bool)) error {
	var left, dead bool
	err := wait.Until(ctx, func() bool { left, dead = looks(); return !left || dead })
	if left && dead {
		return errNotRun
	}
	return err
}

// HeldOutput returns what the guest has sent and no checkpoint covers yet. (A
// colo.OutputHolder.)
func (n *NIC) HeldOutput() colo.Held { return n.buf.HeldOutput() }

// OutputLatency returns how long the packets that have left were kept, from when the
// guest sent them until the uplink had taken them; see filter.Buffer.
func (n *NIC) OutputLatency() event.Latency { return n.buf.OutputLatency() }

// Stats returns the counts of the NIC's buffer.
func (n *NIC) Stats() filter.BufferStats { return n.buf.Stats() }

// Run implements Network. It closes the uplink.
func (n *NIC) Run(ctx context.Context, h NetworkHost) error {
	defer n.over.Store(true)
	if h.Checkpoint != nil {
		n.full.Store(&h.Checkpoint)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { defer close(closed); n.cfg.Uplink.Close() })
	var group sync.WaitGroup
	group.Go(func() { cancel(n.read(ctx)) })
	cancel(n.buf.Run(ctx, &gated{n, ctx, h.Gate}))
	group.Wait()
	<-closed
	return context.Cause(ctx)
}

func (n *NIC) read(ctx context.Context) error {
	for {
		p, err := n.cfg.Uplink.ReadPacket()
		if err != nil {
			return err
		}
		for n.cfg.Deliver != nil {
			turned := n.deliver(p)
			if turned == nil {
				break
			}
			select {
			case <-turned:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// deliver gives a packet to the guest, or drops it. If the guest stands still it
// returns a channel that is closed when that may be over.
func (n *NIC) deliver(p []byte) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.input:
		n.cfg.Deliver(p)
	case !n.follows:
		return n.turned
	}
	return nil
}

// gated writes to the uplink while the gate is open.
type gated struct {
	n    *NIC
	ctx  context.Context
	gate Gate
}

func (g *gated) WritePacket(p []byte) error {
	for !g.gate.Open() {
		g.n.mu.Lock()
		void := g.n.void
		g.n.mu.Unlock()
		if g.n.buf.Void() {
			return nil
		}
		select {
		case <-g.gate.Opened():
		case <-void:
		case <-g.ctx.Done():
			return context.Cause(g.ctx)
		}
	}
	if g.n.buf.Void() { // the gate may have opened before this goroutine could look
		return nil
	}
	return g.n.cfg.Uplink.WritePacket(p)
}
