package replication

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
)

// PrimaryConfig configures a [Primary].
type PrimaryConfig struct {
	// Name is the name of the disk in events; it may be empty.
	Name string
	// Events is told when the disks drift apart (event.DiskBroken), and how
	// far a synchronisation is (event.DiskSyncProgress, then
	// event.DiskSynchronised or event.DiskResynchronised). A subscriber must
	// not call back into the disk. Nil: nobody listens.
	Events *event.Bus
	// Forward bounds what is on its way to the secondary. Its Name and Events
	// are those above.
	Forward ForwarderConfig
	// InSync promises that the secondary disk is, from the beginning, a copy
	// of this one, so that no first synchronisation is needed. See Verify. It
	// counts for the first Remote that is attached, and only if the other side
	// does not know better.
	InSync bool
	// Overwrite permits a secondary's copy to be overwritten as a whole, though it is
	// blank, nothing is known of it, it is of another disk, is newer than this one, or
	// has diverged. Without it Attach refuses such copies.
	Overwrite bool
	// PermitOutdated lets the guest have a disk whose metadata says that it is
	// inconsistent, or outdated.
	PermitOutdated bool
	// Evacuate lets a guest whose local disk has failed (LocalErr) be brought to a
	// secondary: with a Remote that is attached after the failure, Mark makes what
	// the guest has written stable on the secondary only, and the local disk's error
	// ends neither the synchronisation nor the run. The copy is what the local disk
	// reads as; a part that it cannot read ends Synchronise. A run that was under way
	// when the disk failed ends in any case, as without Evacuate, and each flush of
	// the guest fails.
	//
	// Where the metadata beside the local disk cannot be written either, the secondary
	// gets everything, and only the secondary records the generation that begins. On
	// stable storage the local copy stays one of the older generation, so that after a
	// restart the other copy is newer than it or, if a guest goes on with it all the
	// same, has diverged. Until the new generation begins, each write of the guest
	// fails, and changes nothing, where the write-intent bitmap has not marked the
	// place that it writes.
	Evacuate bool
	// HungAfter is how long an operation of the local disk, or of what is kept beside it, may take before it
	// counts as hung; a flush may take three times as long. A call of a method that takes a context
	// waits for a hung one no longer than for the end of its context, and no longer than that
	// if the context never ends, or the method takes none; the copy has failed then, see HungError. What
	// is asked of the metadata is given up after that time by whoever waits for it, the guest's requests too. Zero means
	// DefaultHungAfter, a minute. If it is negative, nothing counts as hung.
	HungAfter time.Duration
	// Gate is asked before each write, flush, trim or zeroing is answered to
	// the guest: while it is shut, the answer waits. Nil: always open. See
	// Fence for those that wait when the guest is given up.
	Gate Gate
}

// Primary is the disk of the guest on the primary host, and the [Replicator] and [Marker]
// of that side. Reads are served by the local disk, and writes are done there first: the
// guest gets the errors of that disk. Writes then go to the secondary as with a
// [Forwarder]. If they cannot, the guest gets no error; Err and the next checkpoint
// return it.
//
// A Primary also works without a secondary: before the first, between two,
// and after it has gone on alone. It keeps account of what a secondary has
// missed, or may have undone because it was written after the last
// checkpoint, so that only that needs to be copied when it comes back.
//
// A host attaches a Remote, synchronises, starts; if the Remote is lost it
// stops, attaches another, synchronises and starts again. All methods may be
// called from any goroutine, but Attach, Synchronise, Start, Mark, Loaded and
// Stop one at a time.
type Primary struct {
	local *stableDisk
	size  atomic.Int64
	cfg   PrimaryConfig
	locks rangeLock
	meta  *Metadata
	gate  gate

	ioErrors ioErrors
	io       ioStats // the counts of the guest's reads and writes
	ahead    ahead
	due      chan struct{} // tells Run to call ahead.begin
	room     room          // what the secondary can take until the next Mark
	peer     peer          // what the secondary has
	raw      bool          // local is no Secondary that was promoted
	resumed  atomic.Bool   // the first write has something to record: see resumeAlone

	link  atomic.Pointer[Forwarder] // nil: detached
	align atomic.Int64              // what requests to the secondary are multiples of; changed with the whole disk locked
	lost  lostOnce
	dog   watchdog

	synced bool // Synchronise has completed once

	evacuates atomic.Bool // the local disk had failed when link was attached, and Evacuate is set; changed with mu

	// steer is held by whoever attaches, detaches, starts, stops or grows, and so also while the
	// other side is waited for, at most as long as its Remote waits: closing that ends it. Nothing
	// that the guest does waits for it, nor Err or Info. It comes before the lock of the whole disk,
	// and that before mu.
	steer sync.Mutex

	mu       sync.Mutex                    // never held while the other side is waited for
	state    atomic.Uint32                 // a State; changed with mu
	joined   bool                          // Attach has succeeded once
	used     bool                          // a run has begun in the present generation
	attached atomic.Pointer[chan struct{}] // closed, and replaced, after link has changed, so that Run needs no lock
}

var (
	_ Replicator = (*Primary)(nil)
	_ Marker     = (*Primary)(nil)
	_ Cutter     = (*Primary)(nil)
	_ Drainer    = (*Primary)(nil)
	_ Informer   = (*Primary)(nil)
	_ Disk       = (*Primary)(nil)
	_ Trimmer    = (*Primary)(nil)
	_ ZeroWriter = (*Primary)(nil)
	_ FUAWriter  = (*Primary)(nil)
)

// NewPrimary returns a Primary over local, in state None and with no secondary.
// The caller keeps local, and from now on writes it only through the Primary.
// The error is that of [CheckDisk], or ErrInconsistent or ErrOutdated if the
// metadata of local says that a guest should not have it, see PermitOutdated.
func NewPrimary(local Disk, cfg PrimaryConfig) (*Primary, error) {
	size := local.Size()
	if err := checkDisk("the disk", local); err != nil {
		return nil, err
	}
	cfg.Forward.Name, cfg.Forward.Events = cfg.Name, cfg.Events
	p := &Primary{
		local: newStableDisk(local, "disk"), cfg: cfg, synced: cfg.InSync,
		peer: newPeer(size), due: make(chan struct{}, 1),
	}
	p.size.Store(size)
	p.align.Store(1)
	attached := make(chan struct{})
	p.attached.Store(&attached)
	p.gate.init(cfg.Gate)
	p.dog.init(event.ModePrimary, cfg.Name, cfg.HungAfter, p.devices, func(error) { p.tellFailed() })
	if err := p.openMetadata(local); err != nil {
		return nil, err
	}
	return p, nil
}

// Attach makes remote the way to the secondary, which must have a disk of the same size (else
// the error is ErrSize, and says which of the two has to grow), and owns it from now on; if
// Attach fails, the caller keeps it, and closes it. Writes to what is in sync are forwarded from
// now on; the rest is for Synchronise. While replication runs the error is ErrRunning. A Remote
// that was attached before is closed when the other side has taken this disk's identity; until
// then, and if it does not, that one stays attached and gets the guest's writes. The two Remotes
// must not write the same secondary at the same time: an Export serves the second when the first
// has ended.
//
// To an [Aligner] the guest's smaller writes are sent as whole blocks, with what the local
// disk has around them. The error is ErrSize if the disk is no multiple of its blocks. A
// [WriteChecker] that cannot be written, or not made stable, is refused with its error.
//
// Attach waits for the other side as long as the Remotes do, and ends when remote is closed. The
// guest's requests do not wait for that, nor do Err, Info, and Stop where nothing runs; Detach does.
// If the local disk hangs, so that a request of the guest does not end, the error matches ErrHung. If it has failed
// (LocalErr), the error is that, unless the guest may be brought away from it (Evacuate): the other side's copy may be the
// good one.
//
// If the Remote is [Identified], the two sides tell each other who they are: a
// copy that was this disk's secondary before lacks what has been written since
// its last checkpoint, another copy of this disk everything. Unless Overwrite
// permits to overwrite the other copy, the error is ErrIdentity for a copy of
// another disk or of none that is known, ErrOutdated for a newer copy (Attach
// then records that this one is outdated), and ErrDiverged for a copy whose
// guest also went on.
func (p *Primary) Attach(remote Remote) error {
	defer p.tellFailed()
	if remote.Size() != p.size.Load() {
		return sizesDiffer(p.size.Load(), remote.Size())
	}
	align, err := alignOf(remote, p.size.Load())
	if err != nil {
		return err
	}
	if err := checkWrites("the secondary's disk", remote); err != nil {
		return err
	}
	return p.dog.call(context.Background(), func() error { return p.attach(remote, align) })
}

func (p *Primary) attach(remote Remote, align int64) error {
	p.steer.Lock()
	defer p.steer.Unlock()
	if p.State() == Running {
		return ErrRunning
	}
	if err := p.LocalErr(); err != nil && !p.cfg.Evacuate {
		return err // the good copy is the other side's
	}
	theirs, lacks, err := p.join(remote)
	if err != nil {
		return err
	}
	cfg := p.cfg.Forward
	cfg.lost = p.peer.dirty.Set
	cfg.ended = p.room.free
	f := NewForwarder(remote, cfg)
	if err := f.Start(context.Background()); err != nil {
		return err
	}
	if old := p.link.Load(); old != nil {
		old.Stop(context.Background(), false) // nobody waits for room in it any more
	}
	// No write is between the account of it and its forwarding.
	h := p.lockAll()
	defer p.locks.unlock(h)
	if e := p.dog.hung.Load(); e != nil { // nobody waits for this any more
		return e
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detach()
	if err := p.joinedTo(theirs, lacks); err != nil {
		return err
	}
	p.evacuates.Store(p.cfg.Evacuate && p.LocalErr() != nil)
	p.align.Store(align)
	p.link.Store(f)
	p.state.Store(uint32(None))
	p.changed()
	return nil
}

// Detach gives up a Remote that was attached and is not to be started, and
// closes it. While replication runs the error is ErrRunning: that is for Stop.
// Without a Remote it does nothing. Of a disk that hangs (ErrHung) only the connection is closed.
func (p *Primary) Detach() error {
	err := p.dog.call(context.Background(), p.giveUp)
	if errors.Is(err, ErrHung) {
		p.Cut()
	}
	return err
}

func (p *Primary) giveUp() error {
	p.steer.Lock()
	defer p.steer.Unlock()
	if p.State() == Running {
		return ErrRunning
	}
	f := p.link.Load()
	if f == nil {
		return nil
	}
	err := f.Stop(context.Background(), false) // nobody waits for room in it any more
	h := p.lockAll()
	defer p.locks.unlock(h)
	p.detach()
	p.changed()
	return err
}

// detach forgets the link, which is stopped, and makes what the secondary may
// not have dirty. The caller holds steer and has locked the whole disk.
func (p *Primary) detach() {
	p.link.Store(nil)
	p.peer.detached()
}

func (p *Primary) lockAll() *rangeHold { return p.locks.lock(0, math.MaxInt64, false) }

func (p *Primary) changed() {
	next := make(chan struct{})
	close(*p.attached.Swap(&next))
}

// Run handles the secondary's answers as they come, for each Remote that is attached,
// until ctx ends. Without Run a lost connection is noticed only when something waits for
// an answer. If the local disk is a [SyncStarter], Run also calls its StartSync while the
// guest writes, so that a Mark finds little left to do.
func (p *Primary) Run(ctx context.Context) error {
	var ahead sync.WaitGroup
	ahead.Go(func() { p.dog.call(ctx, func() error { p.syncAhead(ctx); return nil }) })
	defer ahead.Wait() // it ends with ctx
	for {
		// attached is read before link, so that a change of link after that closes it.
		attached := *p.attached.Load()
		f := p.link.Load()
		if f != nil {
			f.Run(ctx) // until it is stopped or broken
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-attached:
		case <-ctx.Done():
		}
	}
}

// syncAhead calls ahead.begin whenever due has a value, until ctx ends.
func (p *Primary) syncAhead(ctx context.Context) {
	for {
		select {
		case <-p.due:
			p.ahead.begin(p.local)
		case <-ctx.Done():
			return
		}
	}
}

// State returns where the disk stands: None, Running or Done.
func (p *Primary) State() State { return State(p.state.Load()) }

// Start implements [Replicator]. The error is ErrNotSynchronised if there is no secondary,
// or if it is not a copy. After Stop another Remote must be attached first, since without
// one the disk is not protected.
func (p *Primary) Start(ctx context.Context) error { return p.dog.call(ctx, p.start) }

func (p *Primary) start() error {
	defer p.tellFailed()
	p.steer.Lock()
	defer p.steer.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.State() == Running {
		return fmt.Errorf("%w: state %v", ErrRunning, p.State())
	}
	f := p.link.Load()
	if f == nil {
		return fmt.Errorf("%w: no secondary is attached", ErrNotSynchronised)
	}
	if err := errors.Join(p.localFailed(), f.Err()); err != nil {
		return err
	}
	if n := p.peer.dirty.Bytes(); n > 0 {
		return fmt.Errorf("%w: %d bytes are still to be copied", ErrNotSynchronised, n)
	}
	if err := p.begun(); err != nil {
		return err
	}
	p.state.Store(uint32(Running))
	return nil
}

// Checkpoint implements [Replicator]: it returns what Err returns.
func (p *Primary) Checkpoint(context.Context, uint64) error {
	for {
		st := p.State()
		if st == Done {
			return nil
		}
		if err := p.failed(); p.State() == st {
			return err
		}
	}
}

// Err implements [Replicator]: nil, ErrNotRunning before Start, or the
// *BrokenError. After Stop it is nil.
func (p *Primary) Err() error { return p.Checkpoint(context.Background(), 0) }

// failed returns why the disk cannot be part of a checkpoint. It takes no lock, since mu is held
// while the metadata is written.
func (p *Primary) failed() error {
	f := p.link.Load()
	if f == nil || p.State() != Running {
		return ErrNotRunning
	}
	if err := p.localFailed(); err != nil {
		return err
	}
	return f.Err()
}

// forwarder returns the link, or an error if the link is broken or if chunks are still to
// be copied.
func (p *Primary) forwarder() (*Forwarder, error) {
	f := p.link.Load()
	if f == nil {
		return nil, ErrNotRunning
	}
	if err := errors.Join(p.localFailed(), f.Err()); err != nil {
		return nil, err
	}
	if !p.peer.dirty.Empty() {
		return nil, ErrNotSynchronised
	}
	return f, nil
}

// Mark implements [Marker]: when it returns, what the guest has written is
// stable on both sides (see Evacuate for the exception), and what it writes from now on
// is held. Mark may come before Start, for the first synchronisation ends in epoch 0. Errors are
// ErrNotRunning without a secondary, ErrNotSynchronised, the *BrokenError,
// ErrEpoch, and those of ctx and the local disk. A secondary that does not
// answer makes the disk broken after Forward.Timeout, which bounds Mark too.
func (p *Primary) Mark(ctx context.Context, epoch uint64) error {
	return p.dog.call(ctx, func() error { return p.mark(ctx, epoch) })
}

func (p *Primary) mark(ctx context.Context, epoch uint64) error {
	f, err := p.forwarder()
	if err != nil {
		return err
	}
	if err := f.mayHold(epoch); err != nil && p.link.Load() == f {
		return err // before waiting for writers, which may themselves wait for Loaded
	}
	// A write that has reached the disk but not the forwarder belongs to
	// this epoch.
	h := p.lockAll()
	if p.link.Load() != f { // the disk has grown meanwhile, and this is the connection of before
		p.locks.unlock(h)
		return p.mark(ctx, epoch)
	}
	p.peer.marked()
	p.room.marked()
	err = f.beginHold(epoch)
	p.locks.unlock(h)
	if err != nil {
		return err
	}
	if p.evacuates.Load() {
		return f.flush(ctx, true, nil)
	}
	return f.flush(ctx, true, p.syncLocal)
}

// Loaded implements [Marker].
func (p *Primary) Loaded(ctx context.Context, epoch uint64) error {
	return p.dog.call(ctx, func() error { return p.loaded(ctx, epoch) })
}

func (p *Primary) loaded(ctx context.Context, epoch uint64) error {
	defer p.tellFailed()
	f := p.link.Load()
	if f == nil {
		return ErrNotRunning
	}
	if err := f.Loaded(ctx, epoch); err != nil {
		return err
	}
	p.peer.loaded()
	return p.settle(epoch)
}

// Dirty returns how much the secondary lacks and Synchronise would copy, in bytes. Without
// a Remote that includes everything written since the secondary's last checkpoint; what
// the secondary itself knows that it lacks is added when a Remote is attached.
func (p *Primary) Dirty() int64 { return p.lacking().bytes() }

// lacking returns the bits of the chunks that the secondary lacks.
func (p *Primary) lacking() union {
	dirty := p.peer.dirty.bits.Load()
	u := union{p.peer.epoch.bits.Load(), p.peer.older.bits.Load(), dirty}
	if p.link.Load() != nil || u[0].size != dirty.size || u[1].size != dirty.size { // one of them has not grown yet
		return union{dirty}
	}
	return u
}

// Unsynchronise adds the chunks of b to those that Synchronise copies, for chunks that the
// other side has changed on its own.
func (p *Primary) Unsynchronise(b *Bitmap) error { return p.peer.dirty.Or(b) }
