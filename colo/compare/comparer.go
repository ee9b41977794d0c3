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
// length of its virtio-net header is negative or beyond its end. It can never be
// written to a network. Nothing was taken, and trying again is of no use.
var ErrFrame = errors.New("compare: malformed frame")

// A PacketReader is where frames come from. What ReadPacket returns is valid
// until the next call. One that also has a method VNetHdrLen() int says with it
// how long the virtio-net header of the last frame is. filter.Conn is one.
type PacketReader interface {
	ReadPacket() ([]byte, error)
}

// A PacketWriter is where frames go. It does not keep p. One that also has a
// method WriteVNetPacket(p []byte, hdrLen int) error is given with it how long
// the virtio-net header of the frame is. filter.Conn is one.
type PacketWriter interface {
	WritePacket(p []byte) error
}

// A Comparer is an [Engine] between three streams, and a colo.PrimaryNetwork.
// Until Mark(0) the primary's packets pass.
//
// The primary's packets come by WritePacket or ServePrimary, the secondary's by
// ServeSecondary, and Run writes what may leave, in order. Each of these runs
// on a goroutine of the caller's; none starts one. A secondary that is lost
// ends ServeSecondary and nothing else: what waits leaves when the session
// calls Failover. All methods may be called from any goroutine.
type Comparer struct {
	// Diverged is called when a checkpoint is wanted, with the reason; the
	// RequestCheckpoint of a colo.Primary is what it is for. It must not block.
	// It is set before the Comparer is used.
	Diverged func(Reason)

	// Noted is told what has changed about flows: which differ, and which are not
	// compared for a while. It must not block. Nil: nobody is told. It is set before
	// the Comparer is used.
	Noted func(Note)

	// Now is the clock; nil is time.Now. It is set before the Comparer is used.
	Now func() time.Time

	limit int
	wake  chan struct{} // capacity 1: Run has something to look at
	room  chan struct{} // capacity 1: see Room
	note  chan struct{} // capacity 1: a divergence, for ServeNotify

	mu    sync.Mutex
	eng   *Engine
	out   queue
	pool  pool // of what is in out
	wants bool // a packet was refused
	left  Latency

	echo []byte // Inbound's
}

// NewComparer returns a Comparer through which packets pass. Waiting for their
// twins, and waiting to be written, packets take up to cfg.MaxBytes each.
func NewComparer(cfg Config) *Comparer {
	c := &Comparer{
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
	return time.Now()
}

// do calls fn with the engine and does what its result says.
func (c *Comparer) do(fn func(e *Engine, now time.Time) (Result, error)) (full bool, err error) {
	now := c.now()
	c.mu.Lock()
	was := c.eng.Deadline()
	r, err := fn(c.eng, now)
	next := c.eng.Deadline()
	watch := !next.IsZero() && (was.IsZero() || next.Before(was)) // Run sleeps until was
	for i, f := range r.Release {
		p := pkt{Frame: f, at: c.eng.takenAt(i)}
		c.out.push(c.pool.copy(&p))
	}
	c.wants = c.wants || r.Full
	notes := slices.Clone(r.Notes) // the engine's, and rare
	if c.wants && !r.Full {
		c.offer() // something has changed, perhaps in favour of who waits
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

// offer tells who was refused to try again.
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

// WritePacket takes a packet of the primary's guest, without a virtio-net
// header. It never waits. Without memory for it, because too much waits for its
// twin or for the network, it returns [ErrFull] and has taken nothing. What is no
// frame is [ErrFrame].
func (c *Comparer) WritePacket(p []byte) error { return c.WriteVNetPacket(p, 0) }

// WriteVNetPacket is WritePacket for a packet that begins with a virtio-net
// header of hdrLen bytes.
func (c *Comparer) WriteVNetPacket(p []byte, hdrLen int) error {
	f := Frame{p, hdrLen}
	if len(p) == 0 || !f.fits() {
		return ErrFrame
	}
	full, _ := c.do(func(e *Engine, now time.Time) (Result, error) {
		if c.pool.bytes+len(p) > c.limit {
			return Result{Full: true}, nil
		}
		return e.Primary(f, now), nil
	})
	if full {
		return ErrFull
	}
	return nil
}

// Inbound returns a packet to the guest as both guests are to get it: p, or a copy
// in which the echo of a timestamp is the guest's own again; see [Engine.Inbound].
// The copy is valid until the next call. It is called by one goroutine.
func (c *Comparer) Inbound(p []byte, hdrLen int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.eng.echoes(Frame{p, hdrLen}) {
		return p
	}
	c.echo = append(c.echo[:0], p...)
	c.eng.Inbound(Frame{c.echo, hdrLen})
	return c.echo
}

// Room returns a channel that is sent to when there may be room again for a
// packet that was refused.
func (c *Comparer) Room() <-chan struct{} { return c.room }

// ServePrimary takes the primary's packets from r until reading fails or ctx
// ends, and returns why. While there is no room it does not read. What is no frame
// (see [ErrFrame]) has no packet in it, and is dropped. A read that blocks is ended
// by closing what r reads from.
func (c *Comparer) ServePrimary(ctx context.Context, r PacketReader) error {
	return c.serve(ctx, r, func(f Frame) error {
		for c.WriteVNetPacket(f.Data, f.VNetHdr) == ErrFull {
			select {
			case <-c.room:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
}

// ServeSecondary takes the secondary's packets from r until reading fails or
// ctx ends, and returns why. If their stream has epoch markers, they call
// [Comparer.SecondaryMark], as ConnConfig.OnMark of a filter.Conn does.
func (c *Comparer) ServeSecondary(ctx context.Context, r PacketReader) error {
	return c.serve(ctx, r, func(f Frame) error {
		c.do(func(e *Engine, now time.Time) (Result, error) { return e.Secondary(f, now), nil })
		return nil
	})
}

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
	var left instant // when the packet came that has just been written; its end is the next look at the clock
	count := func(e *Engine, now time.Time) {
		if left != 0 {
			c.left.Add(e.instant(now).Sub(left))
			left = 0
		}
	}
	tick := func(e *Engine, now time.Time) (Result, error) {
		count(e, now)
		return e.Tick(now), nil
	}
	for ctx.Err() == nil {
		c.do(tick)
		c.mu.Lock()
		var p *pkt
		if c.out.len() > 0 {
			p = c.out.at(0)
		}
		next := c.eng.Deadline()
		c.mu.Unlock()
		if p == nil {
			wait := time.Hour
			if !next.IsZero() {
				wait = max(next.Sub(c.now()), 100*time.Microsecond)
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
		c.mu.Lock()
		left = p.at
		c.pool.put(c.out.remove(0))
		if c.wants {
			c.offer()
		}
		c.mu.Unlock()
	}
	c.do(func(e *Engine, now time.Time) (Result, error) { count(e, now); return Result{}, nil })
	return context.Cause(ctx)
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

// Loaded says that the secondary's guest runs epoch; see [Engine.Loaded].
func (c *Comparer) Loaded(epoch uint64) error {
	_, err := c.do(func(e *Engine, _ time.Time) (Result, error) { return Result{}, e.Loaded(epoch) })
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

// Unwritten calls fn for each packet that was sent before the last mark and that
// Run has not written: those that may leave, then those that wait for their
// checkpoint. It is called while the guest stands still after a mark, and is what
// that checkpoint must carry, so that nothing is missing from what the guest
// remembers to have sent. fn keeps nothing of the packet, and calls nothing of
// the Comparer.
func (c *Comparer) Unwritten(fn func(Frame)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.out.all() {
		fn(p.Frame)
	}
	c.eng.Covered(fn)
}

// OutputLatency returns how long the packets that Run has written were kept, from
// when the guest sent them until they were written, whatever let them leave.
func (c *Comparer) OutputLatency() Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// Waits returns how long packets have waited that left because the secondary said
// the same.
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
