package filter

import (
	"context"
	"sync"

	"github.com/gocolo/lockstep/internal/wait"
)

// An Inlet gives the secondary's guest the input that the primary's guest gets,
// each packet in the epoch that it belongs to. What came before the mark of a
// checkpoint is part of that checkpoint, and must not be delivered again once
// that is committed; what came after it is for the guest that the commit makes,
// and not for the one before it. So the Inlet drops what is older than the
// guest, and stops reading at a marker until its epoch is committed; meanwhile
// packets wait in the connection and in the primary's Outbox.
//
// Its connection must have markers, and call [Inlet.Mark] for each:
//
//	in := filter.NewInlet()
//	conn := filter.NewConn(sock, filter.ConnConfig{Marks: true, OnMark: in.Mark})
//	err := in.Run(ctx, conn, deliver)
//
// An Inlet does not know of pauses. Its host must not deliver to a guest that is paused
// for a checkpoint, whose memory may be half that of the next checkpoint: proxy.Secondary
// waits until the guest runs.
//
// It is a colo.SecondaryNetwork. It needs a primary that sends markers: with a QEMU,
// which sends none, use [Chain.Serve], which delivers at once.
type Inlet struct {
	delivery sync.Mutex // held while a packet is delivered, so that a commit comes before or after it

	mu      sync.Mutex
	changed chan struct{} // is closed, and replaced, when one of the following changes
	runs    uint64        // the epoch in which the guest is: one more than the last commit
	started bool          // there was a commit
	alone   bool          // there was a failover: packets do not wait for commits any more
	stopped bool          // Run has ended

	at uint64 // the epoch of the packets that Run reads; only Run's goroutine uses it
}

// NewInlet returns an Inlet whose guest has not started.
func NewInlet() *Inlet { return &Inlet{changed: make(chan struct{})} }

// Mark is called for each marker in the stream, from within ReadPacket. It
// waits until the epoch is committed, this side goes on alone, or Run's context
// ends. A marker that goes back, and not to 0, is an [*Error] with [ErrEpoch].
func (in *Inlet) Mark(epoch uint64) error {
	if epoch < in.at && epoch != 0 {
		return &Error{Op: "marker", Offset: -1, Err: ErrEpoch}
	}
	in.at = epoch + 1
	for {
		in.mu.Lock()
		ok, stopped, changed := in.alone || in.started && in.runs >= in.at, in.stopped, in.changed
		in.mu.Unlock()
		if ok {
			return nil
		}
		if stopped {
			return context.Canceled
		}
		<-changed
	}
}

// due reports whether the packets that Run reads belong to the epoch in which the guest
// is.
func (in *Inlet) due() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.at == in.runs && (in.started || in.alone) || in.alone && in.at > in.runs
}

// Run reads packets from conn and delivers them, on the caller's goroutine,
// until reading or delivery fails or ctx ends; it returns why. A read that
// blocks is ended by closing the connection. The frame is valid during the call
// of deliver, which must not wait for the guest: a commit, for which the guest
// is paused, waits for deliver.
func (in *Inlet) Run(ctx context.Context, conn *Conn, deliver func(Frame) error) error {
	in.set(func() { in.stopped = false })
	in.at = 0
	stop := wait.AtEnd(ctx, func() { in.set(func() { in.stopped = true }) }) // and not when the next Run has begun
	defer stop()
	for {
		p, err := conn.ReadPacket()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if err := in.deliver(Frame{p, conn.VNetHdrLen()}, deliver); err != nil {
			return err
		}
	}
}

func (in *Inlet) deliver(f Frame, deliver func(Frame) error) error {
	in.delivery.Lock()
	defer in.delivery.Unlock()
	if !in.due() {
		return nil
	}
	return deliver(f)
}

func (in *Inlet) set(fn func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	fn()
	close(in.changed)
	in.changed = make(chan struct{})
}

// Commit says that the guest has the state of the primary's guest at the mark of epoch:
// what follows that marker is for it.
func (in *Inlet) Commit(epoch uint64) error {
	in.delivery.Lock()
	defer in.delivery.Unlock()
	in.set(func() { in.runs, in.started, in.alone = epoch+1, true, false })
	return nil
}

// Resumed does nothing: packets may arrive at a paused guest.
func (in *Inlet) Resumed(epoch uint64) error { return nil }

// Failover delivers packets from now on without waiting for commits, except those that the
// guest has had already.
func (in *Inlet) Failover() error {
	in.set(func() { in.alone = true })
	return nil
}
