package replication

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// ForwarderConfig names and bounds a [Forwarder].
type ForwarderConfig struct {
	// Name names the disk in events; it may be empty.
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
	// Loaded. Once the Forwarder has seen for 20 ms how fast answers come, writes
	// are let in at that pace while they are held, and at half of it after
	// Loaded until the window has room again, so that no write waits for all of
	// them at once.
	HoldBytes int64
	// Timeout is for how long (or an eighth longer) the other side may be silent while
	// answers are owed; zero means 30 s, for a flush may find much to do. Then the
	// Forwarder is broken, with ErrTimeout. An answer, and any byte that moves if the
	// Remote is a [Mover], ends a silence: a slow link, over which a window may take
	// minutes, is not taken for a lost one. One write that the other side never answers
	// while it answers others is noticed after the next Mark, which waits for it alone.
	//
	// A write of the guest that waits for a silent side waits for as long, unless Cut
	// releases it before: a session does that when it has lost its peer, as one of
	// package colo/protect after its PeerTimeout.
	Timeout time.Duration

	// lost is told which writes may not be on the secondary, before Stop returns: once another
	// connection is in use, an answer that comes late says nothing of the copy. mu is held.
	lost  func(off, n int64)
	ended func() // is told that nothing is sent any more
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
	pace     pace       // how fast writes are let in that are not sent at once
	came     uint64     // how many writes, or parts of one, came to waitRoom
	entered  uint64     // how many of them were let in; those of a broken Forwarder are not counted
	seq      uint64
	free     []*forward
	driving  bool // a goroutine is in remote.Progress
	running  bool // a goroutine is in Run
	wake     chan struct{}
	deadline *time.Timer
	flushAt  time.Time // when the oldest outstanding flush was sent
	heard    time.Time // when the last answer came
	watched  bool      // a timer for the deadline is running
}

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

// gone returns why nothing is sent any more, or nil.
func (f *Forwarder) gone() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed()
}

// Stop ends the use of a Forwarder; it abandons whatever has not been answered, with failover or without: a
// secondary that goes on would undo it. It closes the Remote.
func (f *Forwarder) Stop(_ context.Context, _ bool) error {
	if done, err := f.retire(); done || err != nil {
		return err
	}
	f.close()
	return nil
}

// retire has the Forwarder send nothing any more, and reports whether it was stopped already.
// Unless it was, close follows, which may wait for the other side.
func (f *Forwarder) retire() (done bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.state {
	case None:
		return false, ErrNotRunning
	case Done:
		return true, nil
	}
	f.state = Done
	f.drop()
	return false, nil
}

func (f *Forwarder) close() {
	f.remote.Close()
	if f.cfg.ended != nil {
		f.cfg.ended()
	}
}

// drop empties the queues, and tells of all that has not been answered as lost. The caller
// holds mu.
func (f *Forwarder) drop() {
	lose := func(w *forward) {
		if f.cfg.lost != nil {
			f.cfg.lost(w.off, w.n)
		}
	}
	sent := f.inflight[:0]
	for _, w := range f.inflight {
		lose(w)
		if w.begun {
			w.index = len(sent)
			sent = append(sent, w)
		} else {
			f.bytes -= w.cost()
		}
	}
	clear(f.inflight[len(sent):])
	f.inflight = sent
	for _, w := range f.queue {
		lose(w)
		f.bytes -= w.cost()
	}
	for _, w := range f.hold {
		lose(w)
	}
	f.ready, f.queue, f.hold, f.holding = nil, nil, nil, 0
	if f.deadline != nil {
		f.deadline.Stop()
	}
	f.broadcast()
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
	f.drop()
	f.mu.Unlock()
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
