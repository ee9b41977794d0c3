package filter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// A Frame is a packet with its virtio-net header, if it has one.
type Frame struct {
	Data    []byte
	VNetHdr int // the length of the virtio-net header that Data begins with
}

// A Direction is one way through a chain.
type Direction uint8

// The directions; QEMU's names are tx and rx, seen from the backend.
const (
	ToGuest   Direction = iota // tx
	FromGuest                  // rx
)

// String returns QEMU's name, "tx" or "rx"; "unknown" for what is none.
func (d Direction) String() string {
	switch d {
	case ToGuest:
		return "tx"
	case FromGuest:
		return "rx"
	}
	return "unknown"
}

// A Queue says which directions a filter sees. (QEMU's property queue.)
type Queue uint8

// The queues.
const (
	QueueAll Queue = iota
	QueueTX        // to the guest only
	QueueRX        // from the guest only
)

var queueNames = [...]string{"all", "tx", "rx"}

// String returns QEMU's name (NetFilterDirection), "all", "tx" or "rx"; "unknown" for what is none.
func (q Queue) String() string {
	if int(q) < len(queueNames) {
		return queueNames[q]
	}
	return "unknown"
}

func (q Queue) sees(d Direction) bool {
	return q == QueueAll || (q == QueueTX) == (d == ToGuest)
}

// A Filter looks at packets on their way. Process may change the packet in
// place; it returns whether the packet goes on. at is the filter's place in the
// chain, from which it may send packets of its own. Calls come one at a time.
// The frame is valid during the call.
type Filter interface {
	Process(at Place, d Direction, f Frame) (pass bool)
}

// A Committer is a Filter that is told of the commits of a secondary.
type Committer interface {
	Commit(epoch uint64) error
}

// A Survivor is a Filter that goes on after a failover. A failover switches the others
// off, so that packets pass by them.
type Survivor interface {
	Failover() error
}

// Entry is a filter with its properties.
type Entry struct {
	ID     string // unique in the chain, not empty
	Filter Filter
	Queue  Queue
	Off    bool // packets pass by the filter (QEMU's property status)
}

// Position says where an entry goes. The zero value is the tail.
type Position struct {
	Head   bool   // the head; otherwise, without Next, the tail
	Next   string // next to the entry of this ID
	Before bool   // before it, otherwise behind it
}

// ErrChain says that a chain has no entry of an ID, or has one already.
var ErrChain = errors.New("filter: no such entry, or there already")

// A Chain is the filters between a guest's NIC and its network. Packets to the
// guest pass the filters from the head to the tail, packets from it the other
// way. Its methods may be called from any goroutine; a filter must not call
// them from within Process. The filters run one at a time, also when both
// directions are used at once.
type Chain struct {
	// Deliver takes the packets that have passed all filters in their direction: it gives
	// them to the guest's NIC, or sends them to the network. It is set before the chain is
	// used. It is called with the chain locked, and so in order; it must not call the
	// chain.
	Deliver func(d Direction, f Frame) error

	mu      sync.Mutex
	entries []Entry
	err     error // of Deliver, during a call
}

// Place is the place of a filter in its chain, during a call of Process.
type Place struct {
	c *Chain
	i int
}

// Emit sends a packet on from this place in either direction. It begins at the
// next filter in that direction.
func (p Place) Emit(d Direction, f Frame) { p.c.walk(p.i, d, f) }

// Insert adds an entry. An ID that is empty or in use, a position next to an
// entry that is not there, or no filter is [ErrChain].
func (c *Chain) Insert(e Entry, at Position) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.ID == "" || e.Filter == nil || c.index(e.ID) >= 0 {
		return fmt.Errorf("%w: %q", ErrChain, e.ID)
	}
	i := len(c.entries)
	switch {
	case at.Next != "":
		if i = c.index(at.Next); i < 0 {
			return fmt.Errorf("%w: %q", ErrChain, at.Next)
		}
		if !at.Before {
			i++
		}
	case at.Head:
		i = 0
	}
	c.entries = slices.Insert(c.entries, i, e)
	return nil
}

// Remove takes an entry out. ErrChain says that there is none of that id.
func (c *Chain) Remove(id string) error {
	return c.edit(id, func(i int) { c.entries = slices.Delete(c.entries, i, i+1) })
}

// SetStatus switches an entry on or off. ErrChain says that there is none of that id.
func (c *Chain) SetStatus(id string, on bool) error {
	return c.edit(id, func(i int) { c.entries[i].Off = !on })
}

func (c *Chain) edit(id string, fn func(i int)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.index(id)
	if i < 0 {
		return fmt.Errorf("%w: %q", ErrChain, id)
	}
	fn(i)
	return nil
}

// Entries returns the entries from head to tail, as they are now.
func (c *Chain) Entries() []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.entries)
}

func (c *Chain) index(id string) int {
	return slices.IndexFunc(c.entries, func(e Entry) bool { return e.ID == id })
}

// Do calls fn while no filter runs, so that fn may use a filter that is not safe for
// concurrent use, such as a [Rewriter]. It must not call the chain.
func (c *Chain) Do(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
}

// Send passes a packet through the whole chain. It returns the error of Deliver.
func (c *Chain) Send(d Direction, f Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := -1
	if d == FromGuest {
		from = len(c.entries)
	}
	return c.send(from, d, f)
}

// Inject passes a packet through the filters that follow the entry id in direction d, as a
// redirector does with the packets of its indev. If the entry is switched off or there is
// none, it returns false and has done nothing.
func (c *Chain) Inject(id string, d Direction, f Frame) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.index(id)
	if i < 0 || c.entries[i].Off {
		return false, nil
	}
	return true, c.send(i, d, f)
}

func (c *Chain) send(from int, d Direction, f Frame) error {
	c.err = nil
	c.walk(from, d, f)
	return c.err
}

func (c *Chain) walk(from int, d Direction, f Frame) {
	step := 1
	if d == FromGuest {
		step = -1
	}
	for i := from + step; i >= 0 && i < len(c.entries); i += step {
		e := &c.entries[i]
		if !e.Off && e.Queue.sees(d) && !e.Filter.Process(Place{c, i}, d, f) {
			return
		}
	}
	if err := c.Deliver(d, f); c.err == nil {
		c.err = err
	}
}

// Serve injects what it reads from r behind the entry id, in the directions of
// that entry's queue, until reading or Deliver fails or ctx ends; it returns
// why. A packet that arrives while the entry is switched off is dropped. A read
// that blocks is ended by closing what r reads from.
func (c *Chain) Serve(ctx context.Context, id string, r PacketReader) error {
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
		c.mu.Lock()
		if i := c.index(id); i >= 0 && !c.entries[i].Off {
			q := c.entries[i].Queue
			for _, d := range [...]Direction{ToGuest, FromGuest} {
				if q.sees(d) {
					err = errors.Join(err, c.send(i, d, f))
				}
			}
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Commit tells each [Committer], from head to tail, and stops at the first
// error. (A colo.SecondaryNetwork.)
func (c *Chain) Commit(epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if f, ok := e.Filter.(Committer); ok {
			if err := f.Commit(epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

// Resumed does nothing. (A colo.SecondaryNetwork.)
func (c *Chain) Resumed(epoch uint64) error { return nil }

// Failover tells each [Survivor] and switches off the other filters, so that
// packets pass by them. (A colo.SecondaryNetwork.)
func (c *Chain) Failover() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs error
	for i := range c.entries {
		if f, ok := c.entries[i].Filter.(Survivor); ok {
			errs = errors.Join(errs, f.Failover())
		} else {
			c.entries[i].Off = true
		}
	}
	return errs
}

// Process makes a Rewriter a [Filter], for both directions.
func (r *Rewriter) Process(at Place, d Direction, f Frame) bool {
	if d == ToGuest {
		deliver := r.Inbound(f.Data, f.VNetHdr)
		r.sendLate(at)
		return deliver
	}
	if early := r.Outbound(f.Data, f.VNetHdr); early != nil {
		at.Emit(ToGuest, Frame{early, r.earlyVNet})
	}
	kept := r.Kept()
	r.sendLate(at)
	return !kept
}

// sendLate emits what Late returns.
func (r *Rewriter) sendLate(at Place) {
	for late := r.Late(); late != nil; late = r.Late() {
		at.Emit(FromGuest, Frame{late, r.lateVNet})
	}
}
