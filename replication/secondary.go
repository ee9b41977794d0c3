package replication

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
)

// State says how far the replication of a disk has come. The names are those of QEMU's
// block/replication.c.
type State uint8

// The states of a disk.
const (
	// None: replication has not begun. A secondary's guest cannot use the
	// disk; the primary can, to fill it.
	None State = iota
	// Running: between Start and Stop.
	Running
	// Failover: a secondary goes on alone and its overlays are being copied
	// down. The guest may use the disk.
	Failover
	// FailoverFailed: that copy met an error. The guest may still use the
	// disk, and Commit may be tried again.
	FailoverFailed
	// Done: replication has ended. On a primary, and after a failover, the disk below is
	// the guest's. On a secondary that was stopped without failover it is that of the last
	// checkpoint, which the guest may read and does not change.
	Done
)

// String returns the state in a word, such as "running".
func (s State) String() string {
	names := [...]string{"none", "running", "failover", "failover-failed", "done"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// SecondaryConfig says how a [Secondary] keeps its overlays and where it publishes events.
type SecondaryConfig struct {
	// Name is the name of the disk in events; it may be empty.
	Name string
	// Events is told the first error since Start (event.DiskBroken), and, once in an
	// epoch, that an overlay is half full (event.DiskOverlayHalfFull): a checkpoint,
	// which empties it, is due before it is full, and whoever subscribes sees to it that
	// the primary makes one, of event.CauseLimit. When a write of the guest waits for it,
	// event.DiskOverlayFull is published. Events are published without locks held, on
	// whatever goroutine the thing happened on. A subscriber must not call back into the
	// disk. Nil: nobody listens.
	Events *event.Bus
	// ActiveBytes bounds the memory that the guest's own writes take between
	// checkpoints, in bytes; zero means 256 MiB. Unused with a Journal.
	ActiveBytes int64
	// FullTimeout bounds how long a write of the guest waits for a checkpoint
	// that makes room for it in the active overlay; then it gets ErrFull. Zero
	// means 30 s if there is a bus that can be asked for one, and otherwise, as
	// if negative, that no write waits. See [Drainer] for what cannot wait.
	FullTimeout time.Duration
	// HiddenBytes bounds the memory that the old content of what the primary
	// writes takes between checkpoints, in bytes; zero means 256 MiB. Unused
	// with a Journal.
	HiddenBytes int64
	// Journal keeps the overlays on stable storage, so that the disk
	// survives a crash of this host. Nil: they are in memory, and after a
	// crash the disk must be synchronised anew.
	Journal *Journal
	// DeferCommit makes Stop with failover return as soon as the guest may
	// go on, with the state Failover; the host then calls Commit, on a
	// goroutine of its own. Otherwise Stop itself commits.
	DeferCommit bool
	// Overwrite permits every primary that comes to overwrite the disk as a
	// whole, also if it is that of another guest, or newer.
	Overwrite bool
	// Blank says that there is nothing on the disk that could be lost, since it has just
	// been made (File.Made). The first primary that comes may overwrite it as a whole; a
	// disk that has adopted an identity since is blank no more.
	Blank bool
	// GiveUpCheckpoint lets a synchronisation go on that replaces more of the
	// disk than the Journal has room to keep: the last checkpoint, to which a
	// crash would bring the disk back otherwise, is then given up, and the disk
	// is inconsistent until the synchronisation is complete. If it is false,
	// the primary's writes get ErrFull then.
	GiveUpCheckpoint bool
	// HungAfter is how long an operation of the disk, or of what is kept beside it, may take before it
	// counts as hung; a flush may take three times as long. A call of a method that takes a context
	// waits for a hung one no longer than for the end of its context, and no longer than that
	// if the context never ends, or the method takes none; the copy has failed then, see HungError. What
	// is asked of the metadata is given up after that time by whoever waits for it, the guest's requests too. Zero means
	// DefaultHungAfter, a minute. If it is negative, nothing counts as hung.
	HungAfter time.Duration
	// Gate is asked before a write, flush, trim or zeroing of the guest is answered, once
	// this side goes on alone: while it is shut, the answer waits. Before that nobody
	// sees what the guest does. Nil: always open.
	Gate Gate
}

const defaultOverlayBytes = 256 << 20

// Secondary is the disk of the guest on the secondary host, and the [Replicator] of that
// side. Its ReadAt, WriteAt, Sync, Trim and WriteZeroes are for the guest; what the
// primary forwards comes in through Export. They may be called from any goroutine, at any
// time.
type Secondary struct {
	disk   *stableDisk
	size   atomic.Int64
	cfg    SecondaryConfig
	stable stableState
	meta   *Metadata
	gate   gate

	journal ID // the name of the Journal; zero: there is none

	locks          rangeLock
	active, hidden *overlay
	full           wakeup // of those who wait for a checkpoint that empties active

	ioErrors ioErrors
	io       ioStats // the counts of the guest's reads and writes
	ahead    ahead
	life     lifecycle
	lost     lostOnce
	dog      watchdog

	// One at a time; held while devices are waited for, which the mutex of life never is.
	commit  sync.Mutex // Commit
	keeping sync.Mutex // beginKept, giveUpKept
}

var (
	_ Replicator       = (*Secondary)(nil)
	_ Preparer         = (*Secondary)(nil)
	_ FailoverPreparer = (*Secondary)(nil)
	_ Drainer          = (*Secondary)(nil)
	_ Cutter           = (*Secondary)(nil)
	_ Informer         = (*Secondary)(nil)
	_ Disk             = (*Secondary)(nil)
	_ Trimmer          = (*Secondary)(nil)
	_ ZeroWriter       = (*Secondary)(nil)
)

// stableState records the state of a Secondary on stable storage, and returns when it is
// stable.
type stableState interface {
	// setPrepared records that the disk has all writes of epoch; the overlays can still
	// undo them.
	setPrepared(epoch uint64) error
	// setStarting records, before the first of several disks is started, that
	// they are started together.
	setStarting(together ID) error
	// setStarted voids whatever the overlays held and begins a run, at epoch 0.
	setStarted(id Identity) error
	// setRunning voids whatever the overlays held and begins epoch.
	setRunning(epoch uint64, id Identity) error
	// setFailover makes the overlays themselves stable too.
	setFailover(active *overlay) error
	// setAlone records, before the disk is changed, that a failover was ordered of it and
	// not of all disks of its group.
	setAlone() error
	// setBack records, before a primary fills the disk or its last checkpoint is brought back, that it goes
	// forward neither to a checkpoint that is prepared nor to a start that others have made, and that the last
	// failover of it does not matter any more.
	setBack() error
	setDone(id Identity) error
	// setForgotten records that there is no checkpoint, and that the disk is
	// inconsistent.
	setForgotten(id Identity) error
	// failed returns an error if the recorded state is unknown. The disk must be left as
	// it is then.
	failed() error
	// emptied tells that the overlays in memory have been emptied.
	emptied()
}

// volatileState is the stableState of overlays in memory: nothing of it survives.
type volatileState struct{}

func (volatileState) setStarting(ID) error              { return nil }
func (volatileState) setPrepared(uint64) error          { return nil }
func (volatileState) setStarted(Identity) error         { return nil }
func (volatileState) setRunning(uint64, Identity) error { return nil }
func (volatileState) setFailover(*overlay) error        { return nil }
func (volatileState) setAlone() error                   { return nil }
func (volatileState) setBack() error                    { return nil }
func (volatileState) setDone(Identity) error            { return nil }
func (volatileState) setForgotten(Identity) error       { return nil }
func (volatileState) failed() error                     { return nil }
func (volatileState) emptied()                          {}

// NewSecondary returns the secondary's view of disk, in state None. The caller
// keeps disk, and from now on uses it only through what is returned. The error
// is that of [CheckDisk], or ErrUnclean if the configured Journal must be
// recovered first. If the disk, or what is kept beside it, hangs, it matches ErrHung.
func NewSecondary(disk Disk, cfg SecondaryConfig) (*Secondary, error) {
	size := disk.Size()
	if err := checkDisk("the disk", disk); err != nil {
		return nil, err
	}
	if cfg.ActiveBytes == 0 {
		cfg.ActiveBytes = defaultOverlayBytes
	}
	if cfg.HiddenBytes == 0 {
		cfg.HiddenBytes = defaultOverlayBytes
	}
	s := &Secondary{disk: newStableDisk(disk, "disk"), cfg: cfg, stable: volatileState{}}
	s.life.instance = newID()
	s.size.Store(size)
	s.gate.init(cfg.Gate)
	s.dog.init(event.ModeSecondary, cfg.Name, cfg.HungAfter, s.devices, s.hung)
	var err error
	if s.meta, err = metadataOf(disk); err != nil {
		return nil, err
	}
	s.meta.access.of(event.ModeSecondary, cfg.Name, cfg.HungAfter)
	if cfg.Journal != nil {
		var w watchdog // s.dog would tell of a run that has ended
		w.init(event.ModeSecondary, cfg.Name, cfg.HungAfter, s.devices, func(error) {})
		if err := w.call(context.Background(), func() error { return cfg.Journal.attach(s) }); err != nil {
			return nil, err
		}
		s.meta.forgetRestored() // or the journal has to be recovered first
		s.armKept(s.meta.Identity())
		return s, nil
	}
	s.meta.forgetRestored()
	s.active = newOverlay("active", size, cfg.ActiveBytes, newMemorySlots(cfg.ActiveBytes))
	s.active.keepSpare(size)
	s.hidden = newOverlay("hidden", size, cfg.HiddenBytes, newMemorySlots(cfg.HiddenBytes))
	return s, nil
}

// State returns where the disk stands. Any goroutine may ask.
func (s *Secondary) State() State { return s.life.now() }

// Epoch returns the epoch of the last checkpoint.
func (s *Secondary) Epoch() uint64 {
	_, epoch := s.life.at()
	return epoch
}

// OverlayBytes returns how much the overlays take at the moment, out of their
// bounds, in bytes.
func (s *Secondary) OverlayBytes() (active, hidden int64) {
	if s.cfg.Journal != nil {
		return s.active.usedBytes(), s.cfg.Journal.log.usedBytes()
	}
	return s.active.usedBytes(), s.hidden.usedBytes()
}

func (s *Secondary) lockAll() *rangeHold { return s.locks.lock(0, math.MaxInt64, false) }

// latch records the first error of a run, and returns the error that Err
// returns from then on. A range may be locked; tell is called when none is.
func (s *Secondary) latch(op string, off, n int64, err error) error {
	e, latched := err.(*BrokenError)
	if !latched {
		e = &BrokenError{Op: op, Off: off, Len: n, Err: err}
	}
	s.life.fail(e)
	return e
}

// tell publishes the error that latch has recorded, that of a sync that failed,
// and that of metadata that could not be written, once each. The caller holds no lock.
func (s *Secondary) tell() {
	s.lost.tell(s.disk, s.meta, s.cfg.Events, event.ModeSecondary, s.cfg.Name)
	if e := s.life.takeUntold(); e != nil {
		s.cfg.Events.Publish(e.event(event.ModeSecondary, s.cfg.Name))
	}
}

// tellHalf publishes that an overlay is half full, once in an epoch. The
// caller holds no lock.
func (s *Secondary) tellHalf(overlay string) {
	if !s.life.askOnce() {
		return
	}
	e := event.DiskOverlayHalfFull{Disk: s.cfg.Name, Overlay: overlay, Epoch: s.Epoch()}
	active, hidden := s.OverlayBytes()
	if e.Bytes, e.Bound = hidden, s.hiddenBound(); overlay == s.active.name {
		e.Bytes, e.Bound = active, int64(s.active.max)*BlockSize
	}
	s.cfg.Events.Publish(e)
}

func (s *Secondary) hiddenBound() int64 {
	if j := s.cfg.Journal; j != nil {
		return j.hidden.Size() - logStart
	}
	return int64(s.hidden.max) * BlockSize
}

// syncDisk makes what has been written to the disk stable. An error of it is
// final, and while replication runs it is the error of the run.
func (s *Secondary) syncDisk() error {
	err := s.disk.Sync()
	if err != nil && s.State() == Running {
		return s.latch("flush", 0, 0, err)
	}
	return err
}

// empty empties both overlays. The whole disk is locked.
func (s *Secondary) empty() {
	s.active.reset()
	s.hidden.reset()
	s.stable.emptied()
	s.life.emptied()
	s.full.free()
}

// lockGate refuses further writes of the primary, and waits for all that use the disk.
func (s *Secondary) lockGate() *rangeHold {
	s.life.gate()
	return s.lockAll()
}

// unlockGate lets them in again, unless a checkpoint is prepared.
func (s *Secondary) unlockGate(h *rangeHold) {
	s.life.ungate()
	s.locks.unlock(h)
}

// Prepare does the greater part of a checkpoint: it makes the secondary disk
// stable and, with a Journal, records that it has all of epoch, so that after a
// crash the disks of a [Group] can be brought to one epoch. The primary's
// writes are refused from now on, until the Checkpoint that must follow. An
// error is final, as it is in Checkpoint, but for ErrEpoch.
func (s *Secondary) Prepare(ctx context.Context, epoch uint64) error {
	return s.dog.call(ctx, func() error { return s.prepare(epoch) })
}

func (s *Secondary) prepare(epoch uint64) error {
	if s.State() != Running {
		return nil // Checkpoint returns the error
	}
	defer s.tell()
	defer s.unlockGate(s.lockGate())
	if s.State() != Running { // it has ended meanwhile
		return nil
	}
	if last := s.Epoch(); epoch < last {
		return fmt.Errorf("%w: checkpoint of %d after that of %d", ErrEpoch, epoch, last)
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	if err := s.runFailed(); err != nil { // after the sync: a flush under way may have met an error
		return err
	}
	if s.life.isPrepared(epoch) {
		return nil
	}
	if err := s.stable.setPrepared(epoch); err != nil {
		return s.latch("checkpoint", 0, 0, err)
	}
	s.life.prepare(epoch)
	return nil
}

// Checkpoint makes the secondary disk, with all that the primary has written,
// the disk of epoch that the guest sees. The primary's writes are refused while
// it runs: the primary has either stopped its guest or holds its writes, so
// there can be none. It returns after the secondary disk, and with a Journal
// the change of epoch, are stable. If it fails, the guest still sees the disk
// of the last checkpoint and its own writes; only if it was the Journal that
// failed, a crash of the host may show the new one.
//
// Errors are ErrNotRunning, ErrEpoch, and a *BrokenError, which Err then
// returns too. In states Failover and Done it does nothing.
func (s *Secondary) Checkpoint(ctx context.Context, epoch uint64) error {
	return s.dog.call(ctx, func() error { return s.checkpoint(epoch) })
}

func (s *Secondary) checkpoint(epoch uint64) error {
	defer s.tell()
	defer s.unlockGate(s.lockGate())
	switch s.State() {
	case Failover, Done:
		return nil
	case Running:
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	if last := s.Epoch(); epoch < last {
		return fmt.Errorf("%w: checkpoint of %d after that of %d", ErrEpoch, epoch, last)
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	if err := s.runFailed(); err != nil { // after the sync, as in Prepare
		return err
	}
	if err := s.reach(epoch); err != nil {
		return s.latch("checkpoint", 0, 0, err)
	}
	return nil
}

// reach makes what is on the disk, and stable, the checkpoint of epoch. The whole disk is locked.
func (s *Secondary) reach(epoch uint64) error {
	id := s.identityAt(epoch)
	if err := s.stable.setRunning(epoch, id); err != nil {
		return err
	}
	s.empty()
	s.life.committed(epoch)
	s.life.stand(&id)
	return nil
}

// errBack says that no run goes on from what is on the disk.
var errBack = fmt.Errorf("%w: a Stop that was given up has brought a part of the disk back to the last checkpoint", ErrNotRunning)

// runFailed returns why no checkpoint can be made: the error of the run, or that the metadata could not be
// written, so that a failover could not be recorded.
func (s *Secondary) runFailed() error {
	if s.life.isBack() {
		return errBack
	}
	err := s.life.failed()
	if e := s.meta.failure(); err == nil && e != nil {
		err = s.latch("checkpoint", 0, 0, e)
	}
	return err
}

// Err returns the first error since Start: a pre-image that could not be saved,
// a write of the primary that failed, a checkpoint or a commit that failed; it
// is a *BrokenError. Only the guest is told of errors of its own writes. Before
// Start it is ErrNotRunning.
func (s *Secondary) Err() error {
	if s.State() == None {
		return ErrNotRunning
	}
	return s.life.failed()
}

// LocalErr returns why no Secondary can use this copy any more: the disk, or the Journal,
// could not make stable what was written to it (a *SyncError), or the metadata could not
// be written (a *MetadataError), which is final; or nil. It does not wait. Any goroutine may call it.
func (s *Secondary) LocalErr() error {
	err := s.copyFailed()
	if j := s.cfg.Journal; j != nil {
		err = cmp.Or(err, j.hidden.failed(), j.active.failed())
	}
	return err
}

// copyFailed does what LocalErr does, for the disk and its metadata, and does not wait.
func (s *Secondary) copyFailed() error { return cmp.Or(s.disk.failed(), s.meta.failure()) }
