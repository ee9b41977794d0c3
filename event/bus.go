package event

import (
	"slices"
	"sync"
	"time"
)

// A Bus carries events from a session to its subscribers. The zero Bus is
// ready; a nil *Bus discards what is published and never calls a subscriber.
// Its methods may be called from any goroutine.
//
// Delivery is a call on the publisher's goroutine, one event at a time, to the
// subscribers in the order of their subscription: all of them see all events
// in the same order. A subscriber must therefore be quick (see [Buffered]),
// and must not publish. It may subscribe and cancel, its own subscription too.
type Bus struct {
	// Now is the clock of the records; nil is time.Now. It is set before the
	// bus is used.
	Now func() time.Time

	delivery sync.Mutex // one event at a time; held while subscribers run
	mu       sync.Mutex // guards subs, never held while a subscriber runs
	subs     []*subscription
}

type subscription struct{ fn func(Record) }

// A Record is an event and when it was published.
type Record struct {
	Time  time.Time // zero if unknown
	Event Event
}

// Publish delivers e, with the present time, to all subscribers.
func (b *Bus) Publish(e Event) {
	if b == nil {
		return
	}
	b.delivery.Lock()
	defer b.delivery.Unlock()
	b.mu.Lock()
	subs := b.subs
	b.mu.Unlock()
	if len(subs) == 0 {
		return
	}
	now := time.Now
	if b.Now != nil {
		now = b.Now
	}
	r := Record{Time: now(), Event: e}
	for _, s := range subs {
		s.fn(r)
	}
}

// SubscribeAll calls fn for every event from now on, until cancel is called.
// A delivery that runs on another goroutine while cancel is called may still
// reach fn; later ones do not. Cancelling twice does nothing.
func (b *Bus) SubscribeAll(fn func(Record)) (cancel func()) {
	if b == nil {
		return func() {}
	}
	s := &subscription{fn}
	b.mu.Lock()
	defer b.mu.Unlock()
	// The slice is replaced, never changed: a delivery may be walking it.
	b.subs = append(slices.Clip(b.subs), s)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if i := slices.Index(b.subs, s); i >= 0 {
			b.subs = append(slices.Clone(b.subs[:i]), b.subs[i+1:]...)
		}
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
