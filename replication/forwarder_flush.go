package replication

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// broadcast wakes all goroutines that wait for a change. The caller holds mu.
func (f *Forwarder) broadcast() {
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// waitChange waits until something may have changed. It handles answers itself if no other
// goroutine does. The caller holds mu, which is released meanwhile.
func (f *Forwarder) waitChange(ctx context.Context) {
	if f.pumpSome(1) > 0 {
		return
	}
	if f.driving || len(f.inflight)+f.flushes == 0 {
		if f.wake == nil {
			f.wake = make(chan struct{})
		}
		wake := f.wake
		f.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
		}
		f.mu.Lock()
		return
	}
	f.drive(ctx)
}

// drive handles answers until there has been one, and then sends writes for which that has
// made room. The caller holds mu, which is released meanwhile.
func (f *Forwarder) drive(ctx context.Context) {
	f.driving = true
	if len(f.ready) > 0 {
		f.pump() // a write has to be sent to get an answer
	}
	f.mu.Unlock()
	err := f.remote.Progress(ctx)
	if err != nil && ctx.Err() == nil {
		f.breakOff(&BrokenError{Op: "connection", Err: err})
	}
	f.mu.Lock()
	f.driving = false
	f.pump()
	f.broadcast() // another goroutine may have to handle answers from now on
}

// Run handles answers as they come until ctx ends, the Forwarder is stopped
// (it then returns nil) or broken (it returns why). At most one Run at a
// time.
func (f *Forwarder) Run(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = true
	defer func() {
		f.running = false
		f.broadcast() // those who wait have to send, and to handle answers, themselves
	}()
	for {
		switch {
		case f.state == Done:
			return nil
		case f.err != nil:
			return f.err
		case ctx.Err() != nil:
			return ctx.Err()
		case f.driving:
			f.waitChange(ctx)
		default:
			f.drive(ctx)
		}
	}
}

// waitUntil waits for cond, or an error. The caller holds mu.
func (f *Forwarder) waitUntil(ctx context.Context, cond func() bool) error {
	pushed := false
	for {
		if err := f.failed(); err != nil {
			return err
		}
		f.pump()
		if cond() {
			return f.failed()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if p, ok := f.remote.(Pusher); ok && !pushed {
			f.mu.Unlock()
			p.Push()
			f.mu.Lock()
			pushed = true
			continue // for what has changed meanwhile
		}
		f.waitChange(ctx)
		pushed = false
	}
}

// outstanding reports whether anything with a number up to seq is queued or
// in flight.
func (f *Forwarder) outstanding(seq uint64) bool {
	if len(f.queue) > 0 && f.queue[0].seq <= seq {
		return true
	}
	for _, w := range f.inflight {
		if w.seq <= seq {
			return true
		}
	}
	return false
}

func (f *Forwarder) answered(ctx context.Context, seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waitUntil(ctx, func() bool { return !f.outstanding(seq) })
}

// flush waits for the answers to all writes that are queued or in flight now, and then
// makes them stable on the secondary. If meanwhile is not nil, flush runs it while the
// answers are on their way, and returns an error of meanwhile before one of its own. With
// always, it has the other disk flushed even if this Forwarder has written nothing since
// the last flush, since others may have.
func (f *Forwarder) flush(ctx context.Context, always bool, meanwhile func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq := f.seq
	if meanwhile == nil {
		return f.flushUpTo(ctx, seq, always)
	}
	if f.failed() == nil && !f.outstanding(seq) && (always || !f.flushed || f.stable < seq) {
		// Nothing is waited for before the flush is sent, so that one goroutine can do
		// both.
		wait := f.startFlush(seq)
		f.mu.Unlock()
		local := meanwhile()
		f.mu.Lock()
		return cmp.Or(local, wait(ctx))
	}
	local := make(chan error, 1)
	go func() { local <- meanwhile() }()
	err := f.flushUpTo(ctx, seq, always)
	f.mu.Unlock()
	defer f.mu.Lock()
	return cmp.Or(<-local, err)
}

// flushUpTo does what flush does for the writes up to number seq. The caller holds mu,
// which is released meanwhile.
func (f *Forwarder) flushUpTo(ctx context.Context, seq uint64, always bool) error {
	err := f.waitUntil(ctx, func() bool { return !f.outstanding(seq) })
	// The first flush is always sent: an earlier connection may have written data that was
	// never flushed.
	if err != nil || !always && f.flushed && f.stable >= seq {
		return err
	}
	return f.startFlush(seq)(ctx)
}

// startFlush sends a flush of the writes up to number seq, all of which have been
// answered, and returns a function that waits for its answer. The caller holds mu, also
// when it calls that; it is released meanwhile.
func (f *Forwarder) startFlush(seq uint64) (wait func(context.Context) error) {
	if f.flushes == 0 {
		f.flushAt = time.Now()
	}
	f.flushes++
	f.watch()
	f.mu.Unlock()
	defer f.mu.Lock()
	done := false
	f.remote.StartFlush(func(err error) {
		if err != nil {
			f.breakOff(&BrokenError{Op: "flush", Err: err}) // first, as in finish
		}
		f.mu.Lock()
		done = true
		if err == nil {
			f.stable, f.flushed = max(f.stable, seq), true
		}
		f.flushes--
		f.flushAt = time.Now()
		f.heard = f.flushAt
		f.broadcast()
		f.mu.Unlock()
	})
	return func(ctx context.Context) error {
		return f.waitUntil(ctx, func() bool { return done })
	}
}

// looks is how often, in a Timeout, a Forwarder looks whether the other side is silent.
const looks = 8

// watch starts the timer for the deadline, unless it runs. The caller holds mu.
func (f *Forwarder) watch() {
	if f.watched {
		return // checkDeadline looks for the oldest
	}
	f.watched = true
	if d := f.cfg.Timeout / looks; f.deadline == nil {
		f.deadline = time.AfterFunc(d, f.checkDeadline)
	} else {
		f.deadline.Reset(d)
	}
}

// checkDeadline breaks the Forwarder if nothing has moved for too long.
func (f *Forwarder) checkDeadline() {
	var moved time.Time
	if m, ok := f.remote.(Mover); ok {
		moved = m.Moved()
	}
	f.mu.Lock()
	f.watched = false
	oldest, sent := f.oldest()
	if f.failed() != nil || oldest == nil {
		f.mu.Unlock()
		return
	}
	for _, t := range []time.Time{f.heard, moved} {
		if t.After(sent) {
			sent = t
		}
	}
	left := f.cfg.Timeout - time.Since(sent)
	if left > 0 {
		f.watched = true
		f.deadline.Reset(min(left, f.cfg.Timeout/looks))
	}
	f.mu.Unlock()
	if left <= 0 {
		f.breakOff(oldest)
	}
}

// oldest returns the error of the oldest write or flush without an answer, if that does not
// come, and when it was sent; or nil, if all have been answered. The caller holds mu.
func (f *Forwarder) oldest() (err *BrokenError, sent time.Time) {
	if f.flushes > 0 {
		err, sent = &BrokenError{Op: "flush", Err: ErrTimeout}, f.flushAt
	}
	for _, w := range f.inflight {
		if w.begun && (err == nil || w.sent.Before(sent)) {
			err, sent = &BrokenError{Op: "write", Off: w.off, Len: w.n, Err: ErrTimeout}, w.sent
		}
	}
	return err, sent
}

// Mark implements [Marker]: it waits until everything sent so far is stable
// on the secondary. From its call on, writes are held. It must be followed by
// Loaded of the same epoch, or by Stop; writers whose writes no longer fit
// the bound of what is held wait for that.
func (f *Forwarder) Mark(ctx context.Context, epoch uint64) error {
	if err := f.beginHold(epoch); err != nil {
		return err
	}
	return f.flush(ctx, true, nil)
}

// beginHold has later writes wait for Loaded.
func (f *Forwarder) beginHold(epoch uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.canHold(epoch)
	if err == nil {
		f.held, f.marked, f.heldAt = true, epoch, time.Now()
		f.pace.held(f.heldAt, f.bytes, f.cfg.WindowBytes, f.cfg.HoldBytes)
	}
	return err
}

func (f *Forwarder) mayHold(epoch uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.canHold(epoch)
}

func (f *Forwarder) canHold(epoch uint64) error {
	if err := f.failed(); err != nil {
		return err
	}
	if f.held {
		return fmt.Errorf("%w: mark of %d while %d is not loaded", ErrEpoch, epoch, f.marked)
	}
	return nil
}

// Loaded implements [Marker]: it sends the held writes, in order.
func (f *Forwarder) Loaded(_ context.Context, epoch uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failed(); err != nil {
		return err
	}
	if !f.held || f.marked != epoch {
		return fmt.Errorf("%w: loaded %d, marked %d", ErrEpoch, epoch, f.marked)
	}
	f.held = false
	for _, w := range f.hold {
		f.seq++
		w.seq = f.seq
		f.bytes += w.cost()
	}
	f.queue = append(f.queue, f.hold...)
	f.hold, f.holding = nil, 0
	now := time.Now()
	f.pace.loaded(now, now.Sub(f.heldAt), !f.fits(0))
	f.broadcast()
	if f.running {
		// The answers to these writes send the rest, so that a checkpoint does not wait
		// until the link has taken all.
		f.pumpAtLeast(atOnce)
	} else {
		f.pump()
	}
	return nil
}

// arrived waits until those writes have arrived that overlap a range and were on their way, or
// held, when it was called.
func (f *Forwarder) arrived(ctx context.Context, off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &forward{off: off, n: n}
	if slices.ContainsFunc(f.hold, w.overlaps) {
		epoch := f.marked
		if err := f.waitUntil(ctx, func() bool { return !f.held || f.marked != epoch }); err != nil {
			return err
		}
	}
	last := uint64(0)
	for _, l := range [][]*forward{f.inflight, f.queue} {
		for _, o := range l {
			if o.overlaps(w) {
				last = max(last, o.seq)
			}
		}
	}
	return f.waitUntil(ctx, func() bool {
		return (len(f.queue) == 0 || f.queue[0].seq > last) &&
			!slices.ContainsFunc(f.inflight, func(o *forward) bool { return o.seq <= last && o.overlaps(w) })
	})
}
