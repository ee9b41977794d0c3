package replication

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// ForwarderConfig names and bounds a [Forwarder].
type ForwarderConfig struct {
	// Name is what the events call the disk; it may be empty.
	Name string
	// Events is told, with an event.DiskBroken, when a write is lost, at once
	// and on whatever goroutine that was noticed. A subscriber must not call
	// back into the disk. Nil: nobody listens.
	Events *event.Bus
	// WindowBytes bounds the writes that have been sent, or queued behind an
	// overlapping one, and not answered; zero means 16 MiB. A writer waits
	// for room. A single larger write is let through alone.
	WindowBytes int64
	// WindowRequests bounds their number; zero means 128.
	WindowRequests int
	// HoldBytes bounds what is held between Mark and Loaded, in bytes of
	// memory; zero means 64 MiB. A writer waits for room, that is for
	// Loaded.
	HoldBytes int64
	// Timeout is how long an answer may take; zero means 30 s, for a flush
	// may find much to do. Then the Forwarder is broken, with ErrTimeout.
	Timeout time.Duration

	lost  func(off, n int64) // what is not on the secondary
	ended func()             // nothing is sent any more
}

// timeout is Timeout or what stands for it.
func (c *ForwarderConfig) timeout() time.Duration {
	if c.Timeout == 0 {
		return defaultTimeout
	}
	return c.Timeout
}

const (
	defaultWindowBytes    = 16 << 20
	defaultWindowRequests = 128
	defaultHoldBytes      = 64 << 20
	defaultTimeout        = 30 * time.Second
)

func (c *ForwarderConfig) setDefaults() {
	if c.WindowBytes == 0 {
		c.WindowBytes = defaultWindowBytes
	}
	if c.WindowRequests == 0 {
		c.WindowRequests = defaultWindowRequests
	}
	if c.HoldBytes == 0 {
		c.HoldBytes = defaultHoldBytes
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
}

// Forwarder sends the writes of the primary's guest to the secondary: the
// counterpart of QEMU's replication driver in primary mode, to be placed
// beside the local disk by a host that has its own way of writing both. Most
// use [Primary], which does that.
//
// A write is answered when it has been sent or queued; that it arrived is
// known at Sync, at the end of a WriteFUA, and at Mark. No earlier answer is
// of use: what the secondary's disk has between two checkpoints is undone in
// a failover. Writes that overlap reach the secondary in the order of the
// calls, one after the other, and hold up nobody else; one that waits for an
// earlier one is not sent if a later one replaces all of it. The first write
// that is lost makes the Forwarder broken for good; from then on writes return
// that error.
//
// Its methods may be called from any goroutine. None of its own runs: answers
// are handled by those who wait for them, or by Run, which a host should keep
// running so that a lost connection is noticed at once and queued writes do
// not wait for the next caller.
type Forwarder struct {
	remote Remote
	cfg    ForwarderConfig

	mu       sync.Mutex
	state    State
	err      error
	marked   uint64     // the epoch of the last Mark
	held     bool       // between Mark and Loaded
	heldAt   time.Time  // since when
	stable   uint64     // everything with a seq up to this is stable over there
	flushed  bool       // there has been a flush: before it, nothing is known of what others wrote
	inflight []*forward // sent, or waiting for earlier ones that are here too; at most WindowRequests
	ready    []*forward // of inflight: waiting for nobody any more, to be sent
	queue    []*forward // to be entered in inflight, in order
	hold     []*forward // to be queued at Loaded
	flushes  int        // in flight, not in inflight
	bytes    int64      // cost of inflight and queue
	holding  int64      // cost of hold
	seq      uint64
	free     []*forward
	driving  bool // somebody is in remote.Progress
	running  bool // somebody is in Run
	wake     chan struct{}
	deadline *time.Timer
	flushAt  time.Time // when the oldest outstanding flush was sent
	watched  bool      // deadline will fire
}

// forward is one write on its way.
type forward struct {
	f      *Forwarder
	off, n int64
	fua    bool
	zero   bool
	data   []byte // a copy, if it is or was queued
	seq    uint64
	index  int         // in inflight
	waits  int         // of inflight: earlier ones that overlap and are not answered
	begun  bool        // it has been, or is about to be, handed to the remote; data is left alone from then on
	sent   time.Time   // when that was
	done   func(error) // f.finish of this, bound once
}

// cost is what a write takes of the bounds.
func (w *forward) cost() int64 { return forwardCost(w.n, w.zero) }

func forwardCost(n int64, zero bool) int64 {
	const overhead = 256 // of the record of it
	if zero {
		return overhead
	}
	return n + overhead
}

func (w *forward) overlaps(o *forward) bool { return w.off < o.off+o.n && o.off < w.off+w.n }

var (
	_ Replicator = (*Forwarder)(nil)
	_ Marker     = (*Forwarder)(nil)
	_ Cutter     = (*Forwarder)(nil)
	_ Disk       = (*Forwarder)(nil)
	_ ZeroWriter = (*Forwarder)(nil)
	_ Trimmer    = (*Forwarder)(nil)
	_ FUAWriter  = (*Forwarder)(nil)
)

// NewForwarder returns a Forwarder to remote, in state None. It owns remote,
// and closes it when it is stopped or broken.
func NewForwarder(remote Remote, cfg ForwarderConfig) *Forwarder {
	cfg.setDefaults()
	return &Forwarder{remote: remote, cfg: cfg}
}

// Start implements [Replicator].
func (f *Forwarder) Start(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.state {
	case Done:
		return nil
	case None:
		f.state = Running
		return nil
	}
	return fmt.Errorf("%w: state %v", ErrRunning, f.state)
}

// Checkpoint returns what Err returns, but nil in state Done.
func (f *Forwarder) Checkpoint(context.Context, uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == Done {
		return nil
	}
	return f.failed()
}

// Err returns nil, ErrNotRunning before Start, or the *BrokenError. After
// Stop it is nil.
func (f *Forwarder) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == Done {
		return nil
	}
	return f.failed()
}

// failed returns why nothing can be sent.
func (f *Forwarder) failed() error {
	if f.err == nil && f.state != Running {
		return ErrNotRunning
	}
	return f.err
}

// Stop ends the use of a Forwarder; it abandons whatever has not been answered, with failover or without: a
// secondary that goes on would undo it. It closes the Remote.
func (f *Forwarder) Stop(_ context.Context, _ bool) error {
	f.mu.Lock()
	if f.state == None {
		f.mu.Unlock()
		return ErrNotRunning
	}
	if f.state == Done {
		f.mu.Unlock()
		return nil
	}
	f.state = Done
	lost := f.drop()
	f.mu.Unlock()
	f.tellLost(lost)
	f.remote.Close()
	if f.cfg.ended != nil {
		f.cfg.ended()
	}
	return nil
}

// drop empties the queues, and returns what was in them. The caller holds mu.
func (f *Forwarder) drop() []*forward {
	lost := f.queue
	sent := f.inflight[:0]
	for _, w := range f.inflight {
		if w.begun {
			w.index = len(sent)
			sent = append(sent, w)
		} else {
			lost = append(lost, w)
		}
	}
	clear(f.inflight[len(sent):])
	f.inflight = sent
	for _, w := range lost {
		f.bytes -= w.cost()
	}
	lost = append(lost, f.hold...)
	f.ready, f.queue, f.hold, f.holding = nil, nil, nil, 0
	if f.deadline != nil {
		f.deadline.Stop()
	}
	f.broadcast()
	return lost
}

func (f *Forwarder) tellLost(lost []*forward) {
	if f.cfg.lost != nil {
		for _, w := range lost {
			f.cfg.lost(w.off, w.n)
		}
	}
}

// Cut implements [Cutter]: the Forwarder is broken, with ErrCut, which nobody
// needs to be told.
func (f *Forwarder) Cut() { f.end(&BrokenError{Op: "connection", Err: ErrCut}) }

// end makes the Forwarder broken, and reports whether it was not before. The
// caller does not hold mu.
func (f *Forwarder) end(err *BrokenError) bool {
	f.mu.Lock()
	if f.err != nil || f.state == Done {
		f.mu.Unlock()
		return false
	}
	f.err = err
	lost := f.drop()
	f.mu.Unlock()
	f.tellLost(lost)
	abort(f.remote) // a side that is lost is not waited for; Stop closes
	if f.cfg.ended != nil {
		f.cfg.ended()
	}
	return true
}

// breakOff makes the Forwarder broken, and says so. The caller does not hold mu.
func (f *Forwarder) breakOff(err *BrokenError) {
	if !f.end(err) {
		return
	}
	f.cfg.Events.Publish(err.event(event.ModePrimary, f.cfg.Name))
}

// Size implements [Disk].
func (f *Forwarder) Size() int64 { return f.remote.Size() }

// ReadAt fails: the local disk has all there is to read.
func (f *Forwarder) ReadAt([]byte, int64) (int, error) { return 0, ErrWriteOnly }

// WriteAt sends p, or queues a copy of it. The error is ErrRange,
// ErrNotRunning or the *BrokenError.
func (f *Forwarder) WriteAt(p []byte, off int64) (int, error) {
	if _, err := f.send(p, off, int64(len(p)), false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteFUA sends p and waits until it is stable on the secondary, unless it
// is held.
func (f *Forwarder) WriteFUA(p []byte, off int64) error {
	seq, err := f.send(p, off, int64(len(p)), true)
	if err != nil {
		return err
	}
	return f.answered(context.Background(), seq)
}

// WriteZeroes forwards the zeroing of a range.
func (f *Forwarder) WriteZeroes(off, n int64) error {
	_, err := f.send(nil, off, n, false)
	return err
}

// Trim forwards the zeroing of a range; the secondary may give the storage
// back.
func (f *Forwarder) Trim(off, n int64) error { return f.WriteZeroes(off, n) }

// Sync waits until what has been sent, and what is queued to be sent, is
// stable on the secondary. It does not wait for what is held: that belongs to
// an epoch whose Mark will.
func (f *Forwarder) Sync() error {
	return f.flush(context.Background(), false, nil)
}

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
	f.pumpAtLeast(1) // in turn for this one: no guest's write waits for all that is queued
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

// overlapsAny reports whether something that overlaps a range is on its way, or
// is to be.
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

// atOnce is how many of the writes that were held Loaded sends itself.
const atOnce = 4

// pump sends what waits for nobody any more, and what there is room for of the
// queue. The caller holds mu, which is released meanwhile.
func (f *Forwarder) pump() {
	for f.pumpSome(1) > 0 {
	}
}

// pumpAtLeast sends so many, and goes on while nothing is under way whose answer
// would have the rest sent.
func (f *Forwarder) pumpAtLeast(n int) {
	for f.pumpSome(n) > 0 && len(f.inflight) == 0 {
	}
}

// pumpSome is pump of at most so many, and returns how many.
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
