package event

import (
	"context"
	"sync"
)

// Buffered stands between a bus and a subscriber that may be slow: a log on a
// disk, a monitor connection. It keeps a bounded number of records and, when
// they are too many, drops the oldest, because the last ones say how a session
// ended.
//
//	b := event.NewBuffered(256, fn)
//	defer bus.SubscribeAll(b.Put)()
//	go b.Run(ctx) // the caller's goroutine, and the caller waits for it
type Buffered struct {
	fn   func(r Record, dropped uint64)
	wake chan struct{} // capacity 1: there is something in the ring

	mu      sync.Mutex
	ring    []Record
	head, n int
	gap     uint64 // dropped since the last record that was taken out
	total   uint64 // dropped since the beginning
}

// NewBuffered returns a Buffered for at most limit records, at least one. Its
// Run calls fn with each record, and with how many were dropped just before
// it.
func NewBuffered(limit int, fn func(r Record, dropped uint64)) *Buffered {
	return &Buffered{fn: fn, wake: make(chan struct{}, 1), ring: make([]Record, max(limit, 1))}
}

// Put takes a record. It never blocks; it is what is passed to
// [Bus.SubscribeAll], and may be called from any goroutine.
func (b *Buffered) Put(r Record) {
	b.mu.Lock()
	if b.n == len(b.ring) {
		b.head = (b.head + 1) % len(b.ring)
		b.n--
		b.gap++
		b.total++
	}
	b.ring[(b.head+b.n)%len(b.ring)] = r
	b.n++
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Dropped returns how many records were dropped since the beginning. It may be
// called from any goroutine.
func (b *Buffered) Dropped() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// Run hands the records over, in order, on the caller's goroutine. When ctx
// ends it hands over what is there by then and returns the context's cause.
// It is called once at a time.
func (b *Buffered) Run(ctx context.Context) error {
	for {
		select {
		case <-b.wake:
			for b.hand() {
			}
		case <-ctx.Done():
			b.mu.Lock()
			n := b.n
			b.mu.Unlock()
			for ; n > 0 && b.hand(); n-- {
			}
			return context.Cause(ctx)
		}
	}
}

func (b *Buffered) hand() bool {
	b.mu.Lock()
	if b.n == 0 {
		b.mu.Unlock()
		return false
	}
	r, gap := b.ring[b.head], b.gap
	b.ring[b.head] = Record{}
	b.head = (b.head + 1) % len(b.ring)
	b.n--
	b.gap = 0
	b.mu.Unlock()
	b.fn(r, gap)
	return true
}
