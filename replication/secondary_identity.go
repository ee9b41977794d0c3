package replication

import (
	"context"
	"fmt"
)

var (
	_ MetadataKeeper = (*Secondary)(nil)
	_ Identified     = incoming{}
)

// Metadata implements [MetadataKeeper] with the metadata of the secondary disk.
func (s *Secondary) Metadata() (*Metadata, error) { return s.meta, nil }

// Identity returns the identity of the copy, as a primary is told it: while the primary
// writes the copy, it is an inconsistent one of the primary's generation.
func (s *Secondary) Identity() Identity {
	i := s.meta.Identity()
	i.Overwrite = s.cfg.Overwrite || s.cfg.Blank && i.Disk == (ID{})
	i.instance, i.room = s.life.present(), s.roomForPreImages()
	if s.cfg.Journal != nil {
		i.zeroes = recordHeader
	}
	if a := s.life.adoption(); a != nil {
		i.Disk, i.Generation, i.History, i.State, i.Writes = a.Disk, a.Generation, a.History, CopyInconsistent, false
	}
	if st, epoch := s.life.at(); st == Running {
		i.Epoch, i.State = epoch, CopyInconsistent
	}
	return i
}

// roomForPreImages returns how many bytes of pre-images there is room for, if each block
// is saved by itself.
func (s *Secondary) roomForPreImages() int64 {
	if s.cfg.Journal != nil {
		return s.hiddenBound() / (BlockSize + recordHeader) * BlockSize
	}
	return s.hiddenBound()
}

// Adopt records that the disk is to become a copy of the disk that the identity
// of names. It is called in state None, or in state Running if a primary has come
// back; after a Stop without failover the state is None again. If the disk was a
// copy already and there is a Journal, a crash, or Stop, before the next Start or
// Checkpoint brings the disk back to what it is now. Otherwise Adopt records that
// it is inconsistent.
//
// Without Overwrite, in the identity or the configuration, the error is
// ErrIdentity if it is a copy of another disk, ErrOutdated if it is newer, and
// ErrDiverged if it has gone on by itself. On a side that took over it is
// ErrGated, and ErrNotRunning if the copy has gone back to its last checkpoint
// since the primary asked for its identity. After an error nothing has changed, but for a run that had met an
// error: its disk is that of the last checkpoint again, and the state None. If the disk, or what is kept beside it,
// hangs, the error matches ErrHung.
func (s *Secondary) Adopt(of Identity) error {
	return s.dog.call(context.Background(), func() error { return s.adopt(of) })
}

func (s *Secondary) adopt(of Identity) error {
	if of.Disk == (ID{}) {
		return fmt.Errorf("%w: the primary's disk has no identity", ErrIdentity)
	}
	h := s.lockAll()
	defer s.locks.unlock(h)
	if e := s.dog.hung.Load(); e != nil { // nobody waits for this any more
		return e
	}
	st := s.State()
	if s.life.tookOver() {
		return fmt.Errorf("%w: state %v", ErrGated, st)
	}
	if err := s.makeUpForStart(); err != nil {
		return err
	}
	if err := s.reenter(st); err != nil {
		return err
	}
	if of.instance != (ID{}) && of.instance != s.life.present() {
		return fmt.Errorf("%w: what the primary was told of this copy holds no more", ErrNotRunning)
	}
	st = s.State()
	own := s.meta.Identity()
	if own.Disk != (ID{}) && !of.Overwrite && !s.cfg.Overwrite {
		switch {
		case own.Disk != of.Disk:
			return fmt.Errorf("%w: it is %v, the primary's %v", ErrIdentity, own, of)
		case of.descends(own):
		case own.descends(of):
			return fmt.Errorf("%w: the primary's is %v, this one %v", ErrOutdated, of, own)
		default:
			return fmt.Errorf("%w: %s: the primary's is %v, this one %v", ErrDiverged, whyDiverged(of, own), of, own)
		}
	}
	if st != Running {
		s.armKept(own)
		if err := s.stable.setBack(); err != nil {
			return err
		}
	}
	err := s.meta.update(func(i *Identity, b *peerBase) {
		*b = peerBase{}                       // it is no primary's copy any more
		if st == Running || !s.life.keeps() { // else it is clean until keep changes that
			// In a run the checkpoint is of another generation, which lifecycle.standing and the
			// journal have. This one is recorded all the same: a primary that often comes
			// back has no more room for that of the run's beginning in its history.
			i.State = CopyInconsistent
			i.Disk, i.Generation, i.History, i.Writes = of.Disk, of.Generation, of.History, false
			if st != Running {
				i.Epoch = 0
			}
		}
	})
	if err != nil {
		return err
	}
	s.life.adopt(&of)
	if st == Done {
		s.life.readmitted()
	}
	return nil
}

// reenter makes a Secondary whose run cannot go on ready for a primary that comes back: it
// gives up a prepared checkpoint, and after an error, or a Stop that was given up, takes the disk back to the last
// checkpoint. The whole disk is locked.
func (s *Secondary) reenter(st State) error {
	if st == Running {
		if err := s.complete(); err != nil {
			return err
		}
		if s.life.hasPrepared() {
			if err := s.stable.setPrepared(0); err != nil {
				return err // and it is tried again before anything is written
			}
			s.life.unprepare()
		}
	}
	if !s.life.isBack() && (st != Running || s.life.failed() == nil) {
		return nil
	}
	if err := s.restore(context.Background()); err != nil {
		return err
	}
	s.empty()
	s.life.readmitted()
	return nil
}

// lastIdentity returns the disk's identity at the last checkpoint of the run. A primary that
// has come back since may be of another generation, which that checkpoint is not of.
func (s *Secondary) lastIdentity() Identity {
	i := s.meta.Identity()
	if c := s.life.checkpoint(); c != nil {
		i.Disk, i.Generation, i.History = c.Disk, c.Generation, c.History
	}
	i.Epoch, i.State, i.Writes = s.Epoch(), CopyClean, false
	return i
}

// identityAt returns the disk's identity at a checkpoint that is being made.
func (s *Secondary) identityAt(epoch uint64) Identity {
	i := s.meta.Identity()
	if a := s.life.adoption(); a != nil {
		i.Disk, i.Generation, i.History = a.Disk, a.Generation, a.History
	}
	i.Epoch, i.State, i.Writes = epoch, CopyClean, false
	return i
}

// mayGoForward records of which generation the disk is if a recovery takes it to the start that is about to be made, see
// superblock.idForward. Until then a crash takes it back to the checkpoint that is kept, which the journal
// knows. The whole disk is locked.
func (s *Secondary) mayGoForward() error {
	if !s.life.isKeeping() { // nothing has been changed, or there is no checkpoint and Adopt has recorded it
		return nil
	}
	id := s.identityAt(0)
	return s.meta.update(func(i *Identity, _ *peerBase) {
		i.Disk, i.Generation, i.History = id.Disk, id.Generation, id.History
	})
}

// beginRun records the checkpoint of epoch 0. The whole disk is locked.
func (s *Secondary) beginRun() error {
	id := s.identityAt(0)
	err := s.meta.guardBy(s.journal)
	if err == nil {
		err = s.meta.update(func(*Identity, *peerBase) {}) // there is a name for the copy from now on
	}
	if err != nil {
		return err
	}
	// The journal comes first: if the host crashed in between, the disk would otherwise be
	// recorded as inconsistent without a journal that can make it consistent.
	err = s.stable.setStarted(id)
	if err == nil {
		err = s.meta.update(func(i *Identity, b *peerBase) {
			*i, *b = id, peerBase{}
			i.State = CopyInconsistent
		})
		if lacksRoom(err) && s.cfg.Journal != nil {
			s.life.missedStart() // a recovery would find the start made
		}
	}
	if err == nil {
		s.life.keptEnded()
		s.life.stand(&id)
	}
	return err
}

// beginPromotion records that the guest of this side is going on. The whole
// disk is locked.
func (s *Secondary) beginPromotion() error {
	id := s.life.promote(s.lastIdentity())
	return s.meta.update(func(i *Identity, _ *peerBase) { *i = id; i.State = CopyInconsistent })
}

// end records that the disk below has the identity id, and that replication is
// over. The whole disk is locked, and the disk stable.
func (s *Secondary) end(id Identity) error {
	if s.life.isKeeping() { // what was begun after it did not complete
		id = s.life.keptAs()
	}
	// The disk comes first, since a clean journal is not looked at again.
	if err := s.meta.update(func(i *Identity, _ *peerBase) { *i = id }); err != nil {
		return err
	}
	if err := s.stable.setDone(id); err != nil {
		return err
	}
	s.life.keptEnded()
	s.life.adopt(nil) // id includes it, or it did not take place
	return nil
}
