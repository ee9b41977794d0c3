package replication

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// State is where a replicated disk stands. The names are those of QEMU's
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
	// Done: replication has ended and the disk below is the guest's.
	Done
)

func (s State) String() string {
	names := [...]string{"none", "running", "failover", "failover-failed", "done"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// SecondaryConfig says how a [Secondary] keeps its overlays and whom it tells
// what. Functions in it are called without locks held, from whatever
// goroutine the thing happened on; they must not block and must not call back
// into the disk.
type SecondaryConfig struct {
	// ActiveBytes bounds the memory that the guest's own writes take between
	// checkpoints, in bytes; zero means 256 MiB. Unused with a Journal.
	ActiveBytes int64
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
	// RequestCheckpoint is called, once per epoch, when an overlay is half
	// full: a checkpoint, which empties it, is due before it is full.
	RequestCheckpoint func()
	// OnError is called with the first error since Start.
	OnError func(error)
}

const defaultOverlayBytes = 256 << 20

// Secondary is the disk of the guest on the secondary host, and the
// [Replicator] of that side. Its ReadAt, WriteAt, Sync, Trim and WriteZeroes
// are the guest's; what the primary forwards comes in through Export. They may
// be called from any goroutine, at any time.
type Secondary struct {
	disk   Disk
	size   int64
	cfg    SecondaryConfig
	stable stableState

	locks          rangeLock
	active, hidden *overlay

	// state changes only while the whole disk is locked, so it stands still
	// for whoever holds any range.
	state    atomic.Uint32
	promised atomic.Bool // stable storage says that the overlays count
	gated    atomic.Bool // a checkpoint or failover drains the primary's writes
	unsynced atomic.Bool // disk has been written since it was last synced
	asked    atomic.Bool // a checkpoint has been requested in this epoch
	faulty   atomic.Bool // err is set

	commit sync.Mutex // one Commit at a time

	mu     sync.Mutex
	epoch  uint64
	err    error           // the first error since Start
	behind map[uint32]bool // leaves to be copied down, in state Failover
}

var (
	_ Replicator = (*Secondary)(nil)
	_ Preparer   = (*Secondary)(nil)
	_ Disk       = (*Secondary)(nil)
	_ Trimmer    = (*Secondary)(nil)
	_ ZeroWriter = (*Secondary)(nil)
)

// stableState records on stable storage where a Secondary stands, and returns
// when that is so.
type stableState interface {
	// setRunning voids whatever the overlays held and begins epoch.
	setRunning(epoch uint64) error
	// setFailover makes the overlays themselves stable too.
	setFailover(active *overlay) error
	setDone() error
	// failed returns why it cannot be relied on any more: what is on stable
	// storage is then unknown, and the disk must be left as it is.
	failed() error
	// emptied tells that the overlays in memory have been emptied.
	emptied()
}

// volatileState is that of overlays in memory: nothing of it survives.
type volatileState struct{}

func (volatileState) setRunning(uint64) error    { return nil }
func (volatileState) setFailover(*overlay) error { return nil }
func (volatileState) setDone() error             { return nil }
func (volatileState) failed() error              { return nil }
func (volatileState) emptied()                   {}

// NewSecondary returns the secondary's view of disk, in state None. The
// caller keeps disk, and from now on uses it only through what is returned.
// The error is ErrSize if the size of disk is of no use, or ErrUnclean if the
// configured Journal must be recovered first.
func NewSecondary(disk Disk, cfg SecondaryConfig) (*Secondary, error) {
	size := disk.Size()
	if err := checkSize("the disk", size); err != nil {
		return nil, err
	}
	if cfg.ActiveBytes == 0 {
		cfg.ActiveBytes = defaultOverlayBytes
	}
	if cfg.HiddenBytes == 0 {
		cfg.HiddenBytes = defaultOverlayBytes
	}
	s := &Secondary{disk: disk, size: size, cfg: cfg, stable: volatileState{}}
	if cfg.Journal != nil {
		if err := cfg.Journal.attach(s); err != nil {
			return nil, err
		}
		return s, nil
	}
	s.active = newOverlay("active", size, cfg.ActiveBytes, newMemorySlots(cfg.ActiveBytes))
	s.hidden = newOverlay("hidden", size, cfg.HiddenBytes, newMemorySlots(cfg.HiddenBytes))
	return s, nil
}

// State returns where the disk stands. Any goroutine may ask.
func (s *Secondary) State() State { return State(s.state.Load()) }

// Epoch returns the epoch of the last checkpoint.
func (s *Secondary) Epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
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

// latch records the first error of a run.
func (s *Secondary) latch(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
		s.faulty.Store(true)
	}
	s.mu.Unlock()
	if first && s.cfg.OnError != nil {
		s.cfg.OnError(err)
	}
}

func (s *Secondary) syncDisk() error {
	// Cleared first: a write that comes during the sync must not be missed.
	if !s.unsynced.Swap(false) {
		return nil
	}
	if err := s.disk.Sync(); err != nil {
		s.unsynced.Store(true)
		return fmt.Errorf("replication: sync of the secondary disk: %w", err)
	}
	return nil
}

// Start takes the present content of the secondary disk as the checkpoint of
// epoch 0. From now on the primary's writes save what they replace. In states
// Failover and Done, where a promoted disk stays in its place while the host
// becomes a primary, Start does nothing, as in QEMU.
func (s *Secondary) Start(context.Context) error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch s.State() {
	case Failover, Done:
		return nil
	case None:
	default:
		return fmt.Errorf("%w: state %v", ErrRunning, s.State())
	}
	// What the first synchronisation wrote must not come after a crash
	// later than the record that replication has begun.
	s.unsynced.Store(true)
	if err := s.syncDisk(); err != nil {
		return err
	}
	if err := s.stable.setRunning(0); err != nil {
		return err
	}
	s.empty()
	s.mu.Lock()
	s.epoch, s.err = 0, nil
	s.mu.Unlock()
	s.faulty.Store(false)
	s.gated.Store(false)
	s.state.Store(uint32(Running))
	return nil
}

// empty makes both overlays vanish. The whole disk is locked.
func (s *Secondary) empty() {
	s.active.reset()
	s.hidden.reset()
	s.stable.emptied()
	s.asked.Store(false)
}

// Prepare syncs the secondary disk, so that Checkpoint finds little to sync.
func (s *Secondary) Prepare(context.Context, uint64) error {
	if s.State() == Running {
		return s.syncDisk()
	}
	return nil
}

// Checkpoint makes what the primary has written the disk of epoch. The
// primary's writes are refused while it runs: the primary has either stopped
// its guest or holds its writes, so there can be none. It returns after the
// secondary disk, and with a Journal the change of epoch, are stable. If it
// fails, the guest still sees the disk of the last checkpoint and its own
// writes; only if it was the Journal that failed, a crash of the host may
// show the new one.
//
// Errors are ErrNotRunning, ErrEpoch, what Err returns, or what the disk or
// the Journal returned. In states Failover and Done it does nothing.
func (s *Secondary) Checkpoint(_ context.Context, epoch uint64) error {
	s.gated.Store(true)
	defer s.gated.Store(false)
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch s.State() {
	case Failover, Done:
		return nil
	case Running:
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	s.mu.Lock()
	last, err := s.epoch, s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if epoch < last {
		return fmt.Errorf("%w: checkpoint of %d after that of %d", ErrEpoch, epoch, last)
	}
	err = s.syncDisk()
	if err == nil {
		err = s.stable.setRunning(epoch)
	}
	if err != nil {
		s.latch(err)
		return err
	}
	s.empty()
	s.mu.Lock()
	s.epoch = epoch
	s.mu.Unlock()
	return nil
}

// Err returns the first error since Start: a pre-image that could not be
// saved, a write of the primary's that failed, a checkpoint or a commit that
// failed. Errors of the guest's own writes are the guest's alone. Before
// Start it is ErrNotRunning.
func (s *Secondary) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.State() == None {
		return ErrNotRunning
	}
	return s.err
}

// Stop ends replication; the primary's writes are refused from now on. The
// guest is paused.
//
// With failover, what the guest sees becomes the content of the secondary
// disk: its own writes over the disk of the last checkpoint. That may be
// repeated after an error or a context that ended, see Commit. Without
// failover, the secondary disk is made that of the last checkpoint again, and
// the guest's own writes are dropped; on an error nothing has changed for the
// guest, and Stop may be called again.
func (s *Secondary) Stop(ctx context.Context, failover bool) error {
	if s.State() == None {
		return ErrNotRunning
	}
	s.gated.Store(true) // for good
	if failover {
		if err := s.beginFailover(); err != nil {
			return err
		}
		if s.cfg.DeferCommit {
			return nil
		}
		return s.Commit(ctx)
	}
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch s.State() {
	case Failover, Done:
		return nil
	case Running:
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	if err := s.restore(ctx); err != nil {
		if !errors.Is(err, ctx.Err()) || ctx.Err() == nil {
			s.latch(err)
		}
		return err
	}
	s.empty()
	s.mu.Lock()
	s.err = nil
	s.mu.Unlock()
	s.state.Store(uint32(Done))
	return nil
}
