package compare

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// ErrFull says that there is no memory for a packet. Nothing was taken; the
// caller keeps it and tries again after [Comparer.Room].
var ErrFull = errors.New("compare: buffer full")

// ErrFrame says that what was given to a [Comparer] is no frame: it is empty, or the
// length of its virtio-net header is negative or beyond its end. It can never be written
// to a network. Nothing was taken, and the same frame will always be refused.
var ErrFrame = errors.New("compare: malformed frame")

// A PacketReader yields frames one after another. What ReadPacket returns is valid until
// the next call. If the reader also has a method VNetHdrLen() int, that returns the
// length of the virtio-net header of the last frame. A filter.Conn is a PacketReader.
type PacketReader interface {
	ReadPacket() ([]byte, error)
}

// A PacketWriter takes frames one after another. It does not keep p. If the writer also
// has a method WriteVNetPacket(p []byte, hdrLen int) error, that is called instead, with
// the length of the frame's virtio-net header. A filter.Conn is a PacketWriter.
type PacketWriter interface {
	WritePacket(p []byte) error
}

// A Comparer feeds an [Engine] with the packets of the primary and of the
// secondary, and writes those that may leave to the network. It is a
// colo.PrimaryNetwork. Until Mark(0) the primary's packets pass.
//
// The primary's packets come by WritePacket or ServePrimary, the secondary's by
// ServeSecondary, and Run writes those that may leave, in order. The caller runs each of
// these on a goroutine of its own; none of them starts one. The loss of the secondary
// ends ServeSecondary and nothing else: packets that wait leave when the session calls
// Failover. All methods may be called from any goroutine.
type Comparer struct {
	// Diverged is called when a checkpoint is wanted, with the reason; a host
	// has it call RequestCheckpoint of a colo.Primary. It must not block. It is
	// set before the Comparer is used.
	Diverged func(Reason)

	// Noted is told of each change to a flow: that its packets differ, that it is not
	// compared for a while, or is again. It must not block. Nil: nobody is told. It is set
	// before the Comparer is used.
	Noted func(Note)

	// Now is the clock; nil is time.Now. It is set before the Comparer is used.
	Now func() time.Time

	began time.Time // when the Comparer was made, if Now is nil
	limit int
	wake  chan struct{} // capacity 1: Run has something to look at
	room  chan struct{} // capacity 1: see Room
	note  chan struct{} // capacity 1: a divergence, for ServeNotify

	mu    sync.Mutex
	eng   *Engine
	out   queue   // packets that may leave, in memory of the engine
	bytes int     // the length of the memory that out is in
	wants bool    // a packet was refused for lack of memory, and its sender waits for Room
	left  Latency // how long the packets waited that Run has written

	echo []byte // memory for the packet that Inbound returns
}

// NewComparer returns a Comparer through which packets pass. Packets that wait for their
// twins take up to cfg.MaxBytes, and so do packets that wait to be written.
func NewComparer(cfg Config) *Comparer {
	c := &Comparer{
		began: time.Now(),
		limit: cfg.withDefaults().MaxBytes,
		wake:  make(chan struct{}, 1),
		room:  make(chan struct{}, 1),
		note:  make(chan struct{}, 1),
		eng:   NewEngine(cfg),
	}
	c.eng.Failover()
	return c
}

func (c *Comparer) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return c.began.Add(time.Since(c.began)) // half the price of time.Now, which also reads the time of day
}

// do calls fn with the engine, queues the packets that its result releases, and calls
// Diverged and Noted as the result says.
func (c *Comparer) do(fn func(e *Engine, now time.Time) (Result, error)) (full bool, err error) {
	now := c.now()
	c.mu.Lock()
	was := c.eng.Deadline()
	r, err := fn(c.eng, now)
	next := c.eng.Deadline()
	watch := !next.IsZero() && (was.IsZero() || next.Before(was)) // Run sleeps until was, and must wake earlier
	for i, f := range r.Release {
		p := c.eng.takeOver(i, f)
		c.bytes += sizeOf(p.class)
		c.out.push(p)
	}
	c.wants = c.wants || r.Full
	notes := slices.Clone(r.Notes) // the engine's are valid until its next call
	if c.wants && !r.Full {
		c.offer() // the engine may have freed memory
	}
	c.mu.Unlock()
	if len(r.Release) > 0 || watch {
		signal(c.wake)
	}
	if r.Diverged {
		signal(c.note)
		if c.Diverged != nil {
			c.Diverged(r.Reason)
		}
	}
	if c.Noted != nil {
		for _, n := range notes {
			c.Noted(n)
		}
	}
	return r.Full, err
}

// offer wakes a sender that was refused, so that it tries again.
func (c *Comparer) offer() {
	c.wants = false
	signal(c.room)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// WritePacket takes a packet of the primary's guest, without a virtio-net header. It never
// waits. If there is no memory for the packet, because too many wait for their twins or
// for the network, it returns [ErrFull] and has taken nothing. If p is no frame it returns
// [ErrFrame].
func (c *Comparer) WritePacket(p []byte) error { return c.WriteVNetPacket(p, 0) }

// WriteVNetPacket does what WritePacket does, for a packet that begins with a
// virtio-net header of hdrLen bytes.
func (c *Comparer) WriteVNetPacket(p []byte, hdrLen int) error {
	f := Frame{p, hdrLen}
	if len(p) == 0 || !f.fits() {
		return ErrFrame
	}
	full, _ := c.do(func(e *Engine, now time.Time) (Result, error) {
		if c.crowded(costOf(len(p))) {
			return Result{Full: true}, nil
		}
		return e.Primary(f, now), nil
	})
	if full {
		return ErrFull
	}
	return nil
}

// Inbound returns a packet that is on its way to the guests as both are to get it: p, or a
// copy in which a timestamp's echo has the value that the guest itself sent; see
// [Engine.Inbound]. The copy is valid until the next call. It is called by one goroutine
// at a time.
func (c *Comparer) Inbound(p []byte, hdrLen int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.eng.repeats {
		c.eng.now = c.eng.instant(c.now()) // it measures how long the peer takes to answer
	}
	if f := (Frame{p, hdrLen}); !c.eng.echoes(f) {
		c.eng.overhear(f)
		return p
	}
	c.echo = append(c.echo[:0], p...)
	c.eng.Inbound(Frame{c.echo, hdrLen})
	return c.echo
}

// Room returns a channel that receives a value when there may be room again for a packet
// that was refused.
func (c *Comparer) Room() <-chan struct{} { return c.room }

// ServeSecondary takes the secondary's packets from r until reading fails or
// ctx ends, and returns why. If their stream has epoch markers, they call
// [Comparer.SecondaryMark], as ConnConfig.OnMark of a filter.Conn does.
func (c *Comparer) ServeSecondary(ctx context.Context, r PacketReader) error {
	return c.serve(ctx, r, func(f Frame) error {
		c.do(func(e *Engine, now time.Time) (Result, error) { return e.Secondary(f, now), nil })
		return nil
	})
}

// serve reads frames from r and passes them to take. filter.Chain.Serve has the
// same loop, since neither of the two packages imports the other and each has its
// own Frame.
func (c *Comparer) serve(ctx context.Context, r PacketReader, take func(Frame) error) error {
	vnet, _ := r.(interface{ VNetHdrLen() int })
	for ctx.Err() == nil {
		p, err := r.ReadPacket()
		if err != nil {
			return err
		}
		f := Frame{Data: p}
		if vnet != nil {
			f.VNetHdr = vnet.VNetHdrLen()
		}
		if err := take(f); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Run writes what may leave to out, in order, and looks for packets that have
// waited too long, until a write fails or ctx ends; it returns why. It is called
// once at a time. The packet whose write failed is the first of the next Run. A
// write that blocks is ended by closing what out writes to.
func (c *Comparer) Run(ctx context.Context, out PacketWriter) error {
	vnet, _ := out.(interface {
		WriteVNetPacket(p []byte, hdrLen int) error
	})
	timer := time.NewTimer(0)
	defer timer.Stop()
	tick := func(e *Engine, now time.Time) (Result, error) { return e.Tick(now), nil }
	c.do(tick)
	var p *pkt // the first of c.out, which has just been written
	for ctx.Err() == nil {
		now := c.now()
		c.mu.Lock()
		if p != nil {
			c.written(now)
		}
		p = nil
		next := c.eng.Deadline()
		due := !next.IsZero() && !now.Before(next)
		if !due && c.out.len() > 0 {
			p = c.out.at(0)
		}
		c.mu.Unlock()
		switch {
		case due:
			c.do(tick)
			continue
		case p == nil:
			wait := time.Hour
			if !next.IsZero() {
				wait = max(next.Sub(now), 100*time.Microsecond)
			}
			timer.Reset(wait)
			select {
			case <-ctx.Done():
			case <-c.wake:
			case <-timer.C:
			}
			continue
		}
		var err error
		if vnet != nil {
			err = vnet.WriteVNetPacket(p.Data, p.VNetHdr)
		} else {
			err = out.WritePacket(p.Data)
		}
		if err != nil {
			return err
		}
	}
	if p != nil {
		now := c.now()
		c.mu.Lock()
		c.written(now)
		c.mu.Unlock()
	}
	return context.Cause(ctx)
}

// written removes the first packet of out, which the network has at the time now.
func (c *Comparer) written(now time.Time) {
	p := c.out.remove(0)
	c.left.Add(c.eng.instant(now).Sub(p.at))
	c.bytes -= sizeOf(p.class)
	c.eng.giveBack(p)
	if c.wants {
		c.offer()
	}
}

// Mark ends an epoch; see [Engine.Mark]. From Mark(0) on packets are compared.
func (c *Comparer) Mark(epoch uint64) error {
	_, err := c.do(func(e *Engine, now time.Time) (Result, error) {
		e.now = e.instant(now)
		err := e.Mark(epoch)
		return Result{Notes: e.notes}, err
	})
	return err
}

// Received releases what was sent before the mark of epoch; see
// [Engine.Received].
func (c *Comparer) Received(epoch uint64) error {
	_, err := c.do(func(e *Engine, now time.Time) (Result, error) {
		e.now = e.instant(now)
		return e.Received(epoch)
	})
	return err
}

// SecondaryMark is called for the marker in the secondary's stream, between the
// packets that it separates; see [Engine.SecondaryMark].
func (c *Comparer) SecondaryMark(epoch uint64) error {
	_, err := c.do(func(e *Engine, now time.Time) (Result, error) {
		e.now = e.instant(now)
		return e.SecondaryMark(epoch)
	})
	return err
}

// Loaded says that the secondary's guest runs from the checkpoint of epoch; see
// [Engine.Loaded].
func (c *Comparer) Loaded(epoch uint64) error {
	_, err := c.do(func(e *Engine, now time.Time) (Result, error) {
		e.now = e.instant(now)
		return Result{}, e.Loaded(epoch)
	})
	return err
}

// Failover lets everything leave, in order, and packets pass from now on.
func (c *Comparer) Failover() error {
	c.do(func(e *Engine, _ time.Time) (Result, error) { return e.Failover(), nil })
	return nil
}

// Deafen says that the secondary's stream has ended, or that a new one begins
// within an epoch; see [Engine.Deafen].
func (c *Comparer) Deafen() {
	c.do(func(e *Engine, _ time.Time) (Result, error) { e.Deafen(); return Result{}, nil })
}

// Deaf reports whether the secondary's packets are void at present; see
// [Engine.Deaf].
func (c *Comparer) Deaf() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.Deaf()
}

// Unwritten calls fn for each packet that the guest sent before the last mark and that Run
// has not written: first those that may leave, then those that wait for their checkpoint.
// It is called after a mark, while the guest stands still. That checkpoint must carry
// these packets, since the guest remembers to have sent them. fn keeps nothing of the
// packet and calls no method of the Comparer.
func (c *Comparer) Unwritten(fn func(Frame)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.out.all() {
		fn(p.Frame)
	}
	c.eng.Covered(fn)
}

// AppendScales appends a record of [ScaleRecord] bytes to b for each TCP connection of which
// the scale of the guest's window is known, of at most [MaxScales]. After a mark, while the
// guest stands still, they are what the checkpoint has of the guest; see [Scales.Load].
func (c *Comparer) AppendScales(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.appendScales(b)
}

// AdoptScales takes over the scales of s, before Mark(0) and before the guest has sent
// anything by way of the Comparer. With them the windows of connections that were not seen
// to begin leave as far as both guests have room; see LowerAcks.
func (c *Comparer) AdoptScales(s *Scales) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eng.adoptScales(s)
}

// OutputLatency returns how long the packets that Run has written were kept, from
// when the guest sent them until they were written, whatever let them leave.
func (c *Comparer) OutputLatency() Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// Waits returns how long packets have waited for their twins, counting those that left
// because the secondary's guest said the same.
func (c *Comparer) Waits() Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.Waits()
}

// Stats returns the engine's counts, and how many packets wait to be written.
func (c *Comparer) Stats() (s Stats, queued int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eng.Stats(), c.out.len()
}
