package proxy

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
)

// PrimaryConfig configures a [Primary]. VM and Deliver are required.
type PrimaryConfig struct {
	// VM is the guest. The session is given the Primary in its place. A guest with
	// several NICs has their proxies in a chain, each the VM of the next. Throttle
	// and Stopped of the Primary (colo.Throttler, colo.Stopper) call those of VM, if it
	// has them.
	VM VM

	// Deliver gives a packet to the guest's NIC; the packet is valid during the
	// call and is not to be changed. It must not wait for the guest, nor call the
	// Primary. An error means that the guest's ring is full: the packet is dropped,
	// as a NIC does, and the secondary's guest does not get it either. It is called
	// by one goroutine, and never between the end of a Pause and Resume.
	Deliver func(packet []byte) error

	// RequestCheckpoint is called when a checkpoint is wanted, and is meant for the method
	// of colo.Primary. It must not block. It is called only between Mark(0) and Failover,
	// so that a closure may refer to a session that is made later. Nil: nobody is told.
	RequestCheckpoint func(event.Cause)

	// Continuous is output commit and nothing else: nothing is mirrored or
	// compared, and all output waits for its checkpoint. Both sides agree.
	Continuous bool

	// Compare configures the comparison. The proxy sets some of its fields: Marks always,
	// MaxBytes by Limit; and unless Strict is set, PatientAcks, LowerAcks,
	// ReleaseRetransmits, CompareVLAN and CompareARP always, and HoldUncompared and
	// Adaptive unless one of the next two fields forbids it. With Strict, packets that
	// QEMU does not compare leave uncompared.
	Compare compare.Config

	// PassUncompared lets packets leave at once that cannot be compared: frames of an
	// unknown EtherType, and malformed or too long ones. The secondary's guest may never
	// have sent them. Without PassUncompared they wait for the next checkpoint.
	PassUncompared bool

	// CompareAlways compares all flows always, even one whose guests never agree. Without
	// it the output of such a flow leaves with the checkpoints, at the Pace of Compare,
	// and the flow is compared again from time to time.
	CompareAlways bool

	// Gate is asked before each packet that would leave to the network. Nil is
	// always open.
	Gate Gate

	// Events is told which flows differ, and which are not compared for a while:
	// event.NetworkDiverged, event.NetworkFlowApart and event.NetworkFlowTogether,
	// of each kind ten in a second at most. Nil: nobody is told.
	Events *event.Bus

	// Limit bounds the guest's output that a side keeps, in bytes, and with it what
	// the guest can send from one checkpoint to the next: at half of it a
	// checkpoint is asked for. What waits for the network is bounded by as
	// much again. Both sides have the same. Zero: DefaultLimit. Less than 1 MiB
	// is raised to that.
	Limit int

	// Mirror bounds the input that waits to be sent to the secondary, in bytes. Zero is 4
	// MiB. If a packet finds no room, the guests differ until the next checkpoint, for
	// which the Primary asks then.
	Mirror int

	// VNetHdr is the length, in bytes, of the virtio-net header that each packet
	// of the guest and of the network begins with. Both sides agree.
	VNetHdr int

	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// A Primary is the network of a primary's guest: a colo.PrimaryNetwork and a
// colo.VM, and a device of the guest (register it with Entry). Until the session
// marks the initial synchronisation, packets pass.
//
// All its methods may be called from any goroutine, except that the session's
// and the device's belong to the session. While the guest is paused the NIC calls
// nothing.
type Primary struct {
	cfg   PrimaryConfig
	hello hello
	gate  gate
	slot  slot
	up    latch

	comparer *compare.Comparer // nil: continuous
	buffer   *filter.Buffer    // nil: compared
	mirror   *filter.Outbox
	backlog  filter.Backlog
	scales   scaleImage // what PreSave has gathered

	known    *Neighbors
	edge     *filter.Edge
	announce *announcer // nil: this side has not taken over before

	mu        sync.Mutex
	active    bool // from Mark(0) to Failover
	over      bool // after a Failover, to the next Mark(0)
	connected bool
	inStep    bool      // the connection has carried all packets of this epoch
	stalled   bool      // the connection carried nothing of the last epoch
	loaded    time.Time // when the secondary's guest ran this epoch
	asked     bool      // the proxy has asked for a checkpoint in this epoch
	sent      int       // bytes that the guest has sent in this epoch
	count     inputCount
}

// inputCount counts packets to the guest.
type inputCount struct{ delivered, dropped, mirrored uint64 }

// PrimaryStats counts packets since the Primary was made, except for what is
// "now". With Continuous nothing is matched and nothing diverges.
type PrimaryStats struct {
	Matched    uint64 // packets that left because the secondary's guest had said the same
	Checkpoint uint64 // packets that left because a checkpoint covered them; with Continuous, all
	Passed     uint64 // packets that left uncompared
	Diverged   uint64 // checkpoints that the comparison has asked for
	Recovered  uint64 // how many of them had packets that agreed in the end

	Waits compare.Latency // how long the matched packets were held

	Held, HeldBytes uint64 // now: packets of both guests that wait for their twin or their checkpoint
	Queued          uint64 // now: packets that may leave and have not

	Delivered uint64 // packets that were delivered to the guest
	Refused   uint64 // packets that were dropped, because the guest's ring was full
	Mirrored  uint64 // how many of the delivered were put on the way to the secondary
	Unsent    uint64 // how many of the delivered found no room on that way

	Connected bool               // now: there is a connection to the secondary
	Compare   compare.Stats      // the counts of the comparison; Diverged has one for each compare.Reason
	Buffer    filter.BufferStats // the counts of the output that is held, with Continuous
}

// NewPrimary returns a Primary through which packets pass. It panics without VM or
// Deliver, which is a mistake of the program.
func NewPrimary(cfg PrimaryConfig) *Primary {
	if cfg.VM == nil || cfg.Deliver == nil {
		panic("proxy: PrimaryConfig needs VM and Deliver")
	}
	cfg.Limit = limitOf(cfg.Limit)
	clock := cfg.Now // clock is for packets; nil: they may use one that is read faster
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Primary{cfg: cfg, gate: newGate(cfg.VM, true), mirror: filter.NewOutbox(cfg.Mirror),
		known: new(Neighbors), edge: new(filter.Edge)}
	p.hello = newHello(sidePrimary, cfg.Continuous, cfg.VNetHdr, cfg.Limit)
	p.mirror.Lost = func() { p.ask(event.CauseDivergence) }
	p.edge.Checkpoint = p.mirror.Lost
	_ = p.mirror.Failover() // closed until a mark
	if cfg.Continuous {
		p.buffer = filter.NewBuffer(filter.BufferConfig{
			Limit: cfg.Limit, Full: func() { p.ask(event.CauseLimit) }, Now: clock,
		})
		return p
	}
	c := cfg.Compare
	c.Marks = true
	if !c.Strict {
		c.ReleaseRetransmits, c.PatientAcks, c.LowerAcks = true, true, true
		c.CompareVLAN, c.CompareARP = true, true
		c.HoldUncompared, c.Adaptive = !cfg.PassUncompared, !cfg.CompareAlways
	}
	// The packets that a checkpoint carries, with four bytes for each, must fit into what
	// the secondary loads, which is twice the limit.
	c.MaxBytes = cfg.Limit - cfg.Limit/16
	p.comparer = compare.NewComparer(c)
	p.comparer.Now = clock
	p.comparer.Diverged = func(r compare.Reason) {
		switch r {
		case compare.ReasonLimit:
			p.ask(event.CauseLimit)
		case compare.ReasonPace:
			p.ask(event.CausePace)
		default:
			p.ask(event.CauseDivergence)
		}
	}
	if cfg.Events != nil {
		p.comparer.Noted = (&notes{bus: cfg.Events, now: cfg.Now}).put
	}
	return p
}

func limitOf(n int) int {
	if n == 0 {
		n = DefaultLimit
	}
	return min(max(n, 1<<20), 1<<30) &^ 3
}

// ask asks the session for a checkpoint, for the cause c. The caller must not
// hold p.mu.
func (p *Primary) ask(c event.Cause) {
	p.mu.Lock()
	active := p.active
	p.mu.Unlock()
	if active && p.cfg.RequestCheckpoint != nil {
		p.cfg.RequestCheckpoint(c)
	}
}

// Pause pauses the guest. No input is delivered from now on.
func (p *Primary) Pause(ctx context.Context) error { return p.gate.pause(ctx) }

// Resume resumes the guest, and input is delivered again.
func (p *Primary) Resume(ctx context.Context) error { return p.gate.resume(ctx) }

// WritePacket takes a copy of a packet that the guest sends. It never waits. If
// there is no room it returns [ErrFull] and has taken nothing; a packet that is
// empty, not longer than its virtio-net header, or longer than filter.MaxFrame is a
// *filter.Error.
func (p *Primary) WritePacket(packet []byte) error {
	if err := checkPacket(packet, p.cfg.VNetHdr); err != nil {
		return err
	}
	p.known.FromGuest(packet, p.cfg.VNetHdr)
	if p.buffer != nil {
		return p.buffer.WritePacket(packet)
	}
	if p.comparer.WriteVNetPacket(packet, p.cfg.VNetHdr) != nil {
		return ErrFull
	}
	p.took(len(packet))
	return nil
}

// took counts a packet of n bytes that the comparison has taken, and asks for a checkpoint
// if it is time.
func (p *Primary) took(n int) {
	p.mu.Lock()
	p.sent += room(n)
	cause := event.Cause("")
	if p.active && !p.asked {
		switch {
		case !p.inStep || p.stalled:
			cause = event.CauseDivergence // the packet can leave with a checkpoint only
		case p.sent > p.cfg.Limit/2:
			cause = event.CauseLimit
		}
		p.asked = cause != ""
	}
	p.mu.Unlock()
	if cause != "" {
		p.ask(cause)
	}
}

func checkPacket(packet []byte, vnetHdr int) error { return checkLength(len(packet), vnetHdr) }

// noPacket is the error for a packet that is empty, or that compose did not make. There is one, since
// a reader that finds nothing to read gets it each time.
var noPacket error = &filter.Error{Op: "packet of the guest", Offset: -1, Err: filter.ErrFrame}

func errNoPacket() error { return noPacket }

// checkLength returns an error for a length that no packet of the guest has;
// its virtio-net header, of vnetHdr bytes, counts.
func checkLength(n, vnetHdr int) error {
	switch {
	case vnetHdr < 0, n <= vnetHdr:
		return errNoPacket()
	case n > filter.MaxFrame:
		return &filter.Error{Op: "packet of the guest", Offset: -1, Err: filter.ErrFrameTooBig}
	}
	return nil
}

// Room returns a channel that receives a value when there may be room again for a packet
// that was refused. It is the same every time and is never closed.
func (p *Primary) Room() <-chan struct{} {
	if p.buffer != nil {
		return p.buffer.Room()
	}
	return p.comparer.Room()
}

// Run writes packets that may leave to the network, and delivers and mirrors those that it
// reads from it, until one of the two fails or ctx ends; it returns why. It owns the
// network and closes it, if that has a Close; otherwise the caller must end a read that
// waits. Run is called once at a time. The goroutines that it starts have ended when it
// returns.
func (p *Primary) Run(ctx context.Context, network Network) error {
	up, out := newUplink(network, p.edge, p.cfg.VNetHdr, p.announce != nil)
	loops := []func(context.Context) error{func(ctx context.Context) error {
		for {
			packet, err := up.ReadPacket()
			if err != nil {
				return err
			}
			if err := p.gate.admit(ctx, p.gate.isOpen, func() { p.input(packet) }); err != nil {
				return err
			}
		}
	}}
	if p.announce != nil {
		loops = append(loops, func(ctx context.Context) error { return p.announce.run(ctx, p.cfg.Gate, up) })
	}
	return together(ctx, closerOf(network), func(ctx context.Context) error {
		out := gated(ctx, p.cfg.Gate, out)
		if p.buffer != nil {
			return p.buffer.Run(ctx, out)
		}
		return p.comparer.Run(ctx, out)
	}, loops...)
}

// input delivers and mirrors a packet, with the gate locked.
func (p *Primary) input(packet []byte) {
	if checkPacket(packet, p.cfg.VNetHdr) != nil {
		return
	}
	p.known.ToGuest(packet, p.cfg.VNetHdr)
	refused := false
	if p.comparer != nil {
		packet = p.comparer.Inbound(packet, p.cfg.VNetHdr)
		refused = p.comparer.Refuses(packet, p.cfg.VNetHdr)
	}
	err := p.cfg.Deliver(packet)
	p.mu.Lock()
	mirrors := err == nil && p.inStep && !refused
	switch {
	case err != nil:
		p.count.dropped++
	case mirrors:
		p.count.mirrored++
		fallthrough
	default:
		p.count.delivered++
	}
	p.mu.Unlock()
	if mirrors {
		_ = p.mirror.WriteFrame(filter.Frame{Data: packet, VNetHdr: p.cfg.VNetHdr}) // Lost says so
	}
}

// Serve runs the connection to the secondary: it sends the guest's input, and receives the
// output of the secondary's guest. It owns conn, and closes it at the end. It returns why
// the connection ended, or the cause of the end of ctx; after a Failover nil. It may be
// called again with a new connection, which ends the one before. The goroutine that it
// starts has ended when it returns.
func (p *Primary) Serve(ctx context.Context, conn io.ReadWriteCloser) error {
	outer := ctx
	ctx, free, err := p.slot.take(ctx, conn)
	if err != nil {
		return err
	}
	defer free()
	defer p.detach()
	greeted := make(chan struct{})
	c := filter.NewConn(conn, connConfig(p.cfg.VNetHdr, p.secondaryMark))
	err = together(ctx, conn,
		func(ctx context.Context) error {
			if err := p.hello.expect(conn); err != nil {
				return err
			}
			p.attach()
			close(greeted)
			if p.buffer != nil {
				return discard(c)
			}
			return p.comparer.ServeSecondary(ctx, c)
		},
		func(ctx context.Context) error {
			if err := p.hello.write(conn); err != nil {
				return err
			}
			return outgoing(ctx, greeted, p.mirror, c)
		})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over && outer.Err() == nil {
		return nil
	}
	return err
}

// Connected returns when Serve has a connection on which the other side has said its
// hello. A session that begins after that is in step from its first epoch on.
func (p *Primary) Connected(ctx context.Context) error { return p.up.wait(ctx) }

func connConfig(vnetHdr int, onMark func(uint64) error) filter.ConnConfig {
	return filter.ConnConfig{VNetHdr: vnetHdr > 0, VNetHdrLen: vnetHdr, Marks: true, OnMark: onMark}
}

// outgoing writes the packets of o to c, once the other side has said its hello.
func outgoing(ctx context.Context, greeted <-chan struct{}, o *filter.Outbox, c *filter.Conn) error {
	select {
	case <-greeted:
		return o.Run(ctx, c)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// discard reads from c until that ends.
func discard(c *filter.Conn) error {
	for {
		if _, err := c.ReadPacket(); err != nil {
			return err
		}
	}
}
