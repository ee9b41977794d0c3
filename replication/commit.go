package replication

import (
	"context"
	"fmt"
)

// PrepareFailover orders a failover without carrying it out: it refuses the
// primary's writes for good and, with a Journal, makes stable what the guest on
// this side has written. The guest is paused. Stop with failover does the same
// first.
func (s *Secondary) PrepareFailover(ctx context.Context) error {
	if s.State() == None {
		return ErrNotRunning
	}
	s.life.gate()
	defer s.tell()
	return s.dog.call(ctx, s.beginFailover)
}

// beginFailover refuses the primary's writes for good and records that the overlays are to
// be copied into the disk.
func (s *Secondary) beginFailover() error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch s.State() {
	case Failover, FailoverFailed, Done:
		return nil
	case Running:
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	err := s.beginPromotion()
	if err == nil {
		err = s.stable.setFailover(s.active)
	}
	if err != nil {
		return s.goesOnOverOverlays(err)
	}
	s.life.ordered(s.leavesInUse())
	s.Drain()
	return nil
}

// promoteAsItIs makes a failover where neither side has written anything since the last checkpoint, as after a
// switchover: the disk is what the guest sees. So nothing is to be copied, and stable storage says in one step that
// the guest has gone on, in place of that it is going to, and then that it has. A crash before that leaves the checkpoint. It
// returns false, and has changed nothing, if it is not so. Of several disks none comes here in state Running: each is
// ordered first to go on, so that after a crash all do or none.
func (s *Secondary) promoteAsItIs() (over bool, err error) {
	h := s.lockAll()
	defer s.locks.unlock(h)
	if s.State() != Running || s.life.hasPrepared() || s.life.isBack() || s.life.isKeeping() || s.life.failed() != nil ||
		len(s.leavesInUse()) > 0 || s.syncDisk() != nil {
		return false, nil
	}
	if err := s.end(s.life.promote(s.lastIdentity())); err != nil {
		return true, s.goesOnOverOverlays(err)
	}
	s.life.ordered(nil)
	s.empty()
	s.life.ended()
	s.Drain()
	return true, nil
}

// goesOnOverOverlays notes that the failover could not be recorded. After a crash the disk will be that of the last
// checkpoint, so it must not be changed: the guest goes on with the overlays alone. The whole disk is locked.
func (s *Secondary) goesOnOverOverlays(err error) error {
	s.life.commitFailed()
	s.Drain()
	return s.latch("commit", 0, 0, err)
}

// A Group calls failOverAlone when it could not order a failover of all its disks. The
// guest goes on all the same; if it may change this disk, stable storage says that first,
// for the disks cannot be brought back together afterwards.
func (s *Secondary) failOverAlone(ctx context.Context) error {
	defer s.tell()
	return s.dog.call(ctx, s.orderAlone)
}

func (s *Secondary) orderAlone() error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	if s.State() != Failover {
		return nil
	}
	err := s.stable.setAlone()
	if err != nil {
		s.life.revoked()
		return s.latch("commit", 0, 0, err)
	}
	return nil
}

// leavesInUse returns the leaves of both overlays.
func (s *Secondary) leavesInUse() []uint32 {
	return append(s.active.leavesInUse(), s.hidden.leavesInUse()...)
}

// Commit copies the overlays down into the secondary disk, in state Failover
// or FailoverFailed, and makes the state Done. The guest may use the disk
// meanwhile. After an error the state is FailoverFailed and Err tells why;
// calling Commit again repeats the copy, which is idempotent, unless the error
// is a *SyncError, or a device of the Journal has failed otherwise than for want of
// room: that is final until the disk is opened anew. If ctx ends it
// returns its error and the state remains Failover. In state Done it does
// nothing; in others the error is ErrNotRunning. Any goroutine may call it.
func (s *Secondary) Commit(ctx context.Context) error {
	return s.dog.call(ctx, func() error { return s.commitAll(ctx) })
}

func (s *Secondary) commitAll(ctx context.Context) error {
	defer s.tell()
	s.commit.Lock()
	defer s.commit.Unlock()
	switch s.State() {
	case Done:
		return nil
	case Failover:
	case FailoverFailed:
		if err := s.retryFailover(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	err := s.copyDown(ctx)
	if err == nil || err == ctx.Err() {
		return err
	}
	h := s.lockAll()
	s.life.commitFailed()
	s.locks.unlock(h)
	return s.latch("commit", 0, 0, err)
}

// retryFailover goes back to state Failover with everything to be copied.
func (s *Secondary) retryFailover() error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	err := s.beginPromotion()
	if err == nil {
		err = s.stable.setFailover(s.active)
	}
	if err != nil {
		return err
	}
	s.life.ordered(s.leavesInUse())
	return nil
}

// copyDown copies everything once while the guest may go on, and then what
// the guest has changed meanwhile, with the disk locked.
func (s *Secondary) copyDown(ctx context.Context) error {
	for range 4 { // each pass has only what was written during the one before
		todo := s.life.takeBehind()
		if len(todo) == 0 {
			break
		}
		for i, leaf := range todo {
			err := ctx.Err()
			if err == nil {
				err = s.copyLeafLocked(leaf)
			}
			if err != nil {
				s.life.putBehind(todo[i:])
				return err
			}
		}
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	h := s.lockAll()
	defer s.locks.unlock(h)
	todo := s.life.takeBehind()
	for i, leaf := range todo {
		if err := s.copyLeaf(leaf, s.active); err != nil {
			s.life.putBehind(todo[i:])
			return err
		}
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	if err := s.end(s.life.promotedTo()); err != nil {
		return err
	}
	s.empty()
	s.life.ended()
	return nil
}

func (s *Secondary) copyLeafLocked(leaf uint32) error {
	h := s.locks.lock(int64(leaf)*leafBlocks*BlockSize, leafBlocks*BlockSize, false)
	defer s.locks.unlock(h)
	return s.copyLeaf(leaf, s.active)
}

// copyLeaf writes the blocks of a leaf that active and the hidden overlay hold to the
// disk. A nil active counts as empty. The range is locked.
func (s *Secondary) copyLeaf(leaf uint32, active *overlay) error {
	buf := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(buf)
	var at, n int64 // the bytes [at, at+n) are written next
	flush := func() error {
		if n == 0 {
			return nil
		}
		if err := s.readLayers(buf[:n], at, active); err != nil {
			return err
		}
		var err error
		if isZero(buf[:n]) {
			err = s.disk.WriteZeroes(at, n) // blocks that were holes become holes again
		} else {
			err = writeFull(s.disk, buf[:n], at)
		}
		n = 0
		return err
	}
	first := int64(leaf) * leafBlocks
	last := min(first+leafBlocks, (s.size.Load()+BlockSize-1)/BlockSize)
	for b := first; b < last; b++ {
		held := s.hidden.lookup(b).held()
		if active != nil {
			held |= active.lookup(b).held()
		}
		for from, to := range runs(held) {
			lo, hi := b*BlockSize+int64(from)*SectorSize, b*BlockSize+int64(to)*SectorSize
			if lo != at+n || hi-at > int64(len(buf)) {
				if err := flush(); err != nil {
					return err
				}
				at = lo
			}
			n = hi - at
		}
	}
	return flush()
}

// restore makes the secondary disk that of the last checkpoint, by copying
// the pre-images back. The whole disk is locked.
func (s *Secondary) restore(ctx context.Context) error {
	if err := s.stable.failed(); err != nil {
		return err
	}
	if err := s.stable.setBack(); err != nil {
		return err
	}
	leaves := s.hidden.leavesInUse()
	if len(leaves) > 0 {
		s.life.takenBack()
	}
	for _, leaf := range leaves {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.copyLeaf(leaf, nil); err != nil {
			return err
		}
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	return s.end(s.lastIdentity())
}
