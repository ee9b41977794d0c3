package event

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Bus carries events from a session to its subscribers. The zero Bus is
// ready; a nil *Bus discards what is published and never calls a subscriber.
// Its methods may be called from any goroutine, also from a subscriber.
//
// Delivery is a call on the publisher's goroutine, one event at a time, to the
// subscribers in the order of their subscription: all of them see all events
// in the same order. A subscriber must therefore be quick (see [Buffered]): the session
// that publishes waits for it, and so does everyone else who publishes meanwhile. What a
// subscriber publishes is queued, and delivered when all subscribers have seen the event
// that led to it.
//
// A bus can carry the events of many guests: see [Bus.Guest].
type Bus struct {
	// Now is the clock of the records; nil is time.Now. It is set before the
	// bus is used.
	Now func() time.Time

	parent *Bus   // the bus to which the events of a guest's bus go; nil: this is no guest's bus
	guest  string // the guest of a guest's bus

	mu        sync.Mutex // guards what follows, never held while a subscriber runs
	subs      []*subscription
	queue     []Record  // published by subscribers, behind the event under way
	delivers  bool      // a goroutine delivers: one event at a time, until the subscribers have returned
	delivered sync.Cond // delivers has become false; its L is mu, from the first wait on
}

// subscription is guarded by mu of the bus.
type subscription struct {
	fn   func(Record)
	busy bool      // fn runs
	over bool      // cancel was called
	idle sync.Cond // fn has returned
}

// A Record is an event with the time of its publication and the name of its guest.
type Record struct {
	Time  time.Time // zero if unknown
	Guest string    // its name; empty if the event was not published on a guest's bus
	Event Event

	// Members are the members of the event's data that its type has no field for, as
	// [Decode] has found them.
	Members Members
}

// Guest returns a bus for the events of one guest, which is a view of this one:
// what is published on it is delivered here, and its records name the guest. Its
// subscribers see the events of this guest only, those of b see all. So one bus,
// and one log, serves a host with many guests. If b is a guest's bus itself, name
// replaces its guest. Guest of a nil bus returns nil.
func (b *Bus) Guest(name string) *Bus {
	if b == nil {
		return nil
	}
	return &Bus{parent: b.root(), guest: name}
}

// root returns the bus that delivers the events of b.
func (b *Bus) root() *Bus {
	if b.parent != nil {
		return b.parent
	}
	return b
}

// Publish delivers e, with the present time, to all subscribers, and returns
// when they have seen it. If a subscriber calls it, it returns at once.
func (b *Bus) Publish(e Event) {
	if b == nil {
		return
	}
	b.root().publish(Record{Guest: b.guest, Event: e})
}

func (b *Bus) publish(r Record) {
	if !b.begin(false) {
		// Another publisher delivers, or the one that has called this
		// subscriber, which waits for this call to return.
		if delivering() {
			b.mu.Lock()
			b.queue = append(b.queue, b.stamped(r))
			b.mu.Unlock()
			return
		}
		b.begin(true)
	}
	for ok := true; ok; {
		b.deliverAll(r)
		// A subscriber of another bus, on another goroutine, may have queued
		// something since.
		if !b.begin(false) {
			return // the goroutine that delivers will take it
		}
		if r, ok = b.next(); !ok {
			b.end()
		}
	}
}

// deliverAll delivers r and what subscribers have published meanwhile, and lets another goroutine
// deliver, also where a subscriber panics or ends its goroutine: a host may recover, and others
// go on publishing.
func (b *Bus) deliverAll(r Record) {
	defer b.end()
	for ok := true; ok; r, ok = b.next() {
		b.deliver(b.stamped(r))
	}
}

// begin lets the caller deliver when nobody else does. With wait it waits until then; otherwise
// it reports whether the caller may deliver now. It does not use a mutex: in a bubble of
// testing/synctest, waiting for a mutex while a subscriber sleeps would stop the clock.
func (b *Bus) begin(wait bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.delivers {
		if !wait {
			return false
		}
		if b.delivered.L == nil {
			b.delivered.L = &b.mu
		}
		b.delivered.Wait()
	}
	b.delivers = true
	return true
}

// end lets another goroutine deliver.
func (b *Bus) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delivers = false
	b.delivered.Signal()
}

// stamped gives a record its time, if it has none yet.
func (b *Bus) stamped(r Record) Record {
	switch {
	case !r.Time.IsZero():
	case b.Now != nil:
		r.Time = b.Now()
	default:
		r.Time = time.Now()
	}
	return r
}

// next takes what a subscriber has published.
func (b *Bus) next() (r Record, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return Record{}, false
	}
	r = b.queue[0]
	b.queue = slices.Delete(b.queue, 0, 1)
	return r, true
}

// deliver calls the subscribers. The function delivering looks for its name on the stack.
func (b *Bus) deliver(r Record) {
	b.mu.Lock()
	subs := b.subs
	b.mu.Unlock()
	for _, s := range subs {
		s.call(b, r)
	}
}

func (s *subscription) call(b *Bus, r Record) {
	b.mu.Lock()
	over := s.over
	s.busy = !over
	b.mu.Unlock()
	if over {
		return
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		s.busy = false
		s.idle.Broadcast()
	}()
	s.fn(r)
}

// delivering reports whether the caller's goroutine is inside a delivery: then
// it must not wait for one to end.
func delivering() bool {
	var pcs [64]uintptr
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			f, more = frames.Next()
			if strings.HasSuffix(f.Function, "/event.(*Bus).deliver") {
				return true
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}

// SubscribeAll calls fn for every event from now on, until cancel is called.
// When cancel returns, no call of fn is under way and none follows, so what fn
// uses may be freed; but cancel does not wait if it is called by a subscriber.
// Cancelling twice does nothing.
func (b *Bus) SubscribeAll(fn func(Record)) (cancel func()) {
	if b == nil {
		return func() {}
	}
	if b.parent != nil {
		guest, all := b.guest, fn
		b, fn = b.parent, func(r Record) {
			if r.Guest == guest {
				all(r)
			}
		}
	}
	s := &subscription{fn: fn}
	s.idle.L = &b.mu
	b.mu.Lock()
	defer b.mu.Unlock()
	// The slice is replaced, never changed: a delivery may be walking it.
	b.subs = append(slices.Clip(b.subs), s)
	return func() { b.cancel(s) }
}

func (b *Bus) cancel(s *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.over = true
	if i := slices.Index(b.subs, s); i >= 0 {
		b.subs = append(slices.Clone(b.subs[:i]), b.subs[i+1:]...)
	}
	if !s.busy || delivering() {
		return
	}
	for s.busy {
		s.idle.Wait()
	}
}

// Subscribe calls fn for every event of type T from now on, until cancel is
// called, as [Bus.SubscribeAll] does.
func Subscribe[T Event](b *Bus, fn func(T)) (cancel func()) {
	return b.SubscribeAll(func(r Record) {
		if e, ok := r.Event.(T); ok {
			fn(e)
		}
	})
}
