package replication

import (
	"slices"
	"time"
)

// How the writes of a Forwarder are queued, held and sent, and what their answers do.

// forward is one write on its way.
type forward struct {
	f      *Forwarder
	off, n int64
	fua    bool
	zero   bool
	data   []byte // a copy, if it is or was queued
	seq    uint64
	index  int         // its place in inflight
	waits  int         // how many earlier writes of inflight overlap it and have no answer
	begun  bool        // it is or was handed to the remote, and data must not change any more
	sent   time.Time   // when that was
	done   func(error) // w.finish, as one value, so that it is allocated once
}

// cost returns how many bytes of the bounds the write takes.
func (w *forward) cost() int64 { return forwardCost(w.n, w.zero) }

func forwardCost(n int64, zero bool) int64 {
	const overhead = 256 // bytes that the record of a write takes, about
	if zero {
		return overhead
	}
	return n + overhead
}

func (w *forward) overlaps(o *forward) bool { return w.off < o.off+o.n && o.off < w.off+w.n }

// Larger writes are sent in parts, since the other side has limits.
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
		w.seq = 0 // answered must not wait for it
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
	f.pumpAtLeast(1) // for this one only, so that no guest's write waits until all of the queue is sent
	return seq
}

// replace gives w the content of a later write of the same range, if w has not been sent,
// and reports whether it did. No write that overlaps may have come between the two.
func (w *forward) replace(p []byte, off, n int64, fua bool) bool {
	if w.begun || w.zero || p == nil || w.off != off || w.n != n {
		return false
	}
	w.keep(p)
	w.fua = w.fua || fua
	return true
}

// number gives w the latest sequence number. The caller holds mu.
func (f *Forwarder) number(w *forward) *forward {
	f.seq++
	w.seq = f.seq
	f.bytes += w.cost()
	return w
}

// overlapsAny reports whether a write that overlaps a range is in flight, queued or held.
func (f *Forwarder) overlapsAny(off, n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &forward{off: off, n: n}
	for _, l := range [][]*forward{f.inflight, f.queue, f.hold} {
		if slices.ContainsFunc(l, w.overlaps) {
			return true
		}
	}
	return false
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

// keep copies p, so that it can be sent later.
func (w *forward) keep(p []byte) { w.data = append(w.data[:0], p...) }

// full reports whether inflight has WindowRequests writes.
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

// enter puts w, the latest write, into inflight. The caller holds mu.
func (f *Forwarder) enter(w *forward, waits int) {
	w.index, w.waits = len(f.inflight), waits
	f.inflight = append(f.inflight, w)
}

// launch marks w, which is in inflight, as sent. The caller holds mu, and calls start
// next, without mu.
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

// finish is called by the remote with the answer to the write.
func (w *forward) finish(err error) {
	f := w.f
	if err != nil {
		op := "write"
		if w.zero {
			op = "zeroes"
		}
		// First, so that nobody who waits for the answer takes it for a good one.
		f.breakOff(&BrokenError{Op: op, Off: w.off, Len: w.n, Err: err})
	}
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
	f.heard = time.Now()
	f.noteAnswer(w.cost())
	if cap(w.data) > 256<<10 {
		w.data = nil
	}
	if len(f.free) < f.cfg.WindowRequests {
		f.free = append(f.free, w)
	}
	f.broadcast()
	f.mu.Unlock()
}

// atOnce is how many of the held writes Loaded sends itself; the answers to these send the
// rest.
const atOnce = 4

// pump sends the writes that wait for no other, and as many from the queue as there is
// room for. The caller holds mu, which is released meanwhile.
func (f *Forwarder) pump() {
	for f.pumpSome(1) > 0 {
	}
}

// pumpAtLeast sends n writes, and more as long as no write is under way whose answer would
// send the rest.
func (f *Forwarder) pumpAtLeast(n int) {
	for f.pumpSome(n) > 0 && len(f.inflight) == 0 {
	}
}

// pumpSome does what pump does for at most so many writes, and returns how many it has
// sent.
func (f *Forwarder) pumpSome(most int) (sent int) {
	for sent < most && f.failed() == nil {
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
			return sent
		}
		f.launch(w)
		f.mu.Unlock()
		f.start(w, w.data)
		f.mu.Lock()
		sent++
	}
	return sent
}
