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

	lost  func(off, n int64) // is told which writes are not on the secondary
	ended func()             // is told that nothing is sent any more
}

// timeout returns Timeout, or its default.
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
// A write is answered when it has been sent or queued. That it has arrived is known at
// Sync, at the end of a WriteFUA, and at Mark; to know it earlier is of no use, since a
// failover undoes what the secondary's disk got after the last checkpoint. Writes that
// overlap reach the secondary in the order of the calls, one after the other, and other
// writes do not wait for them. A write that waits for an earlier one is not sent if a
// later one replaces all of it. The first write that is lost breaks the Forwarder for
// good; from then on writes return that error.
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
	stable   uint64     // all writes with a seq up to this are stable on the secondary
	flushed  bool       // there has been a flush; before it, writes of an earlier connection may not be stable
	inflight []*forward // writes that have been sent, or wait for earlier ones in inflight; at most WindowRequests
	ready    []*forward // those of inflight that wait for no other and are to be sent
	queue    []*forward // writes that are to enter inflight, in order
	hold     []*forward // writes that enter queue at Loaded
	flushes  int        // flushes without an answer
	bytes    int64      // cost of inflight and queue
	holding  int64      // cost of the writes in hold
	seq      uint64
	free     []*forward
	driving  bool // a goroutine is in remote.Progress
	running  bool // a goroutine is in Run
	wake     chan struct{}
	deadline *time.Timer
	flushAt  time.Time // when the oldest outstanding flush was sent
	watched  bool      // a timer for the deadline is running
}

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
	sent   time.Time   // when it was handed to the remote
	done   func(error) // w.finish, as one value, so that it is allocated once
}

// cost returns how many bytes of the bounds the write takes.
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

// failed returns the error for which nothing can be sent, or nil.
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

// Cut implements [Cutter]: it breaks the Forwarder with ErrCut, without an event.
func (f *Forwarder) Cut() { f.end(&BrokenError{Op: "connection", Err: ErrCut}) }

// end breaks the Forwarder, and reports whether it was whole. The caller does not hold mu.
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
	abort(f.remote) // without waiting for a side that may be lost; Stop closes
	if f.cfg.ended != nil {
		f.cfg.ended()
	}
	return true
}

// breakOff breaks the Forwarder and publishes that. The caller does not hold mu.
func (f *Forwarder) breakOff(err *BrokenError) {
	if !f.end(err) {
		return
	}
	f.cfg.Events.Publish(err.event(event.ModePrimary, f.cfg.Name))
}

// Size implements [Disk].
func (f *Forwarder) Size() int64 { return f.remote.Size() }

// ReadAt fails, since reads are for the local disk.
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

// Sync waits until the writes that were sent or queued are stable on the secondary. It
// does not wait for those that are held: these belong to an epoch whose own Mark waits for
// them.
func (f *Forwarder) Sync() error {
	return f.flush(context.Background(), false, nil)
}

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

// waitRoom waits until there is room for n more bytes. The caller holds mu.
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
