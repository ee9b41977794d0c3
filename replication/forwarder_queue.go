package replication

import (
	"context"
	"time"
)

// Larger writes are sent in parts, for other sides have their limits.
const (
	maxForward       = 4 << 20
	maxForwardZeroes = 32 << 20
)

// send sends or queues p, or n zeroes if it is nil, and returns the number
// under which answered waits for it.
func (f *Forwarder) send(p []byte, off, n int64, fua bool) (seq uint64, err error) {
	if err := checkRange(off, n, f.remote.Size()); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := true; first || n > 0; first = false {
		c := min(n, maxForward)
		var part []byte
		if p != nil {
			part, p = p[:c], p[c:]
		} else {
			c = min(n, maxForwardZeroes)
		}
		if err := f.waitRoom(forwardCost(c, p == nil)); err != nil {
			return 0, err
		}
		if c > 0 {
			seq = f.sendPart(part, off, c, fua)
		}
		off, n = off+c, n-c
	}
	return seq, nil
}

// sendPart sends or queues one part. The caller holds mu, which is released
// meanwhile.
func (f *Forwarder) sendPart(p []byte, off, n int64, fua bool) (seq uint64) {
	if f.held {
		if k := len(f.hold); k > 0 && f.hold[k-1].replace(p, off, n, fua) {
			return 0
		}
		w := f.newForward(off, n, fua, p == nil)
		w.keep(p)
		w.seq = 0 // answered does not wait for it
		f.hold = append(f.hold, w)
		f.holding += w.cost()
		return 0
	}
	if len(f.queue) == 0 && !f.full() {
		waits, last := f.overlapping(off, n)
		if last != nil && last.replace(p, off, n, fua) {
			return last.seq // when that is answered, so is this
		}
		w := f.number(f.newForward(off, n, fua, p == nil))
		f.enter(w, waits)
		if waits > 0 {
			w.keep(p)
			return w.seq
		}
		seq = w.seq
		f.launch(w)
		f.mu.Unlock()
		f.start(w, p)
		f.mu.Lock()
		f.pump() // the answer, or that to another, may have been there already
		return seq
	}
	w := f.number(f.newForward(off, n, fua, p == nil))
	w.keep(p)
	f.queue = append(f.queue, w)
	seq = w.seq
	f.pump()
	return seq
}

// replace makes w, if it is not on its way, a later write of the same range,
// and reports whether it could. Between the two there must not have been one
// that overlaps.
func (w *forward) replace(p []byte, off, n int64, fua bool) bool {
	if w.begun || w.zero || p == nil || w.off != off || w.n != n {
		return false
	}
	w.keep(p)
	w.fua = w.fua || fua
	return true
}

// number makes w the latest of what is outstanding. The caller holds mu.
func (f *Forwarder) number(w *forward) *forward {
	f.seq++
	w.seq = f.seq
	f.bytes += w.cost()
	return w
}

// waitRoom waits until n more may be outstanding. The caller holds mu.
func (f *Forwarder) waitRoom(n int64) error {
	for {
		if err := f.failed(); err != nil {
			return err
		}
		if f.held {
			if f.holding == 0 || f.holding+n <= f.cfg.HoldBytes {
				return nil
			}
		} else if f.bytes == 0 || f.bytes+n <= f.cfg.WindowBytes && len(f.inflight)+len(f.queue) < f.cfg.WindowRequests {
			return nil
		}
		f.waitChange(context.Background())
	}
}

func (f *Forwarder) newForward(off, n int64, fua, zero bool) *forward {
	var w *forward
	if k := len(f.free); k > 0 {
		w = f.free[k-1]
		f.free = f.free[:k-1]
	} else {
		w = &forward{f: f}
		w.done = w.finish
	}
	w.off, w.n, w.fua, w.zero, w.begun = off, n, fua, zero, false
	return w
}

// keep copies what is to be sent later.
func (w *forward) keep(p []byte) { w.data = append(w.data[:0], p...) }

// full reports whether inflight has all that it may have.
func (f *Forwarder) full() bool { return len(f.inflight) >= f.cfg.WindowRequests }

// overlapping returns how many of inflight overlap a range, and the latest of
// them.
func (f *Forwarder) overlapping(off, n int64) (count int, last *forward) {
	for _, o := range f.inflight {
		if off < o.off+o.n && o.off < off+n {
			count++
			if last == nil || o.seq > last.seq {
				last = o
			}
		}
	}
	return count, last
}

// enter puts w, the latest, into inflight. The caller holds mu.
func (f *Forwarder) enter(w *forward, waits int) {
	w.index, w.waits = len(f.inflight), waits
	f.inflight = append(f.inflight, w)
}

// launch makes w, of inflight, one that is on its way. The caller holds mu,
// and calls start next, without it.
func (f *Forwarder) launch(w *forward) {
	w.begun = true
	w.sent = time.Now()
	f.watch()
}

func (f *Forwarder) start(w *forward, p []byte) {
	if w.zero {
		f.remote.StartZeroes(w.off, w.n, w.fua, w.done)
	} else {
		f.remote.StartWrite(p, w.off, w.fua, w.done)
	}
}

// finish is called with the answer.
func (w *forward) finish(err error) {
	f := w.f
	off, n, zero := w.off, w.n, w.zero
	f.mu.Lock()
	last := len(f.inflight) - 1
	f.inflight[w.index] = f.inflight[last]
	f.inflight[w.index].index = w.index
	f.inflight[last] = nil
	f.inflight = f.inflight[:last]
	for _, o := range f.inflight {
		if o.seq > w.seq && o.waits > 0 && o.overlaps(w) {
			if o.waits--; o.waits == 0 {
				f.ready = append(f.ready, o)
			}
		}
	}
	f.bytes -= w.cost()
	if cap(w.data) > 256<<10 {
		w.data = nil
	}
	if len(f.free) < f.cfg.WindowRequests {
		f.free = append(f.free, w)
	}
	f.broadcast()
	f.mu.Unlock()
	if err == nil {
		return
	}
	if f.cfg.lost != nil {
		f.cfg.lost(off, n)
	}
	op := "write"
	if zero {
		op = "zeroes"
	}
	f.breakOff(&BrokenError{Op: op, Off: off, Len: n, Err: err})
}

// pump sends what waits for nobody any more, and what there is room for of the
// queue. The caller holds mu, which is released meanwhile.
func (f *Forwarder) pump() {
	for f.failed() == nil {
		var w *forward
		if k := len(f.ready); k > 0 {
			w = f.ready[k-1]
			f.ready[k-1] = nil
			f.ready = f.ready[:k-1]
		} else if len(f.queue) > 0 && !f.full() {
			w = f.queue[0]
			f.queue[0] = nil
			if f.queue = f.queue[1:]; len(f.queue) == 0 {
				f.queue = nil
			}
			waits, _ := f.overlapping(w.off, w.n)
			f.enter(w, waits)
			if waits > 0 {
				continue
			}
		} else {
			return
		}
		f.launch(w)
		f.mu.Unlock()
		f.start(w, w.data)
		f.mu.Lock()
	}
}
