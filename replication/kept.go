package replication

import (
	"errors"
	"fmt"
)

// keptState says whether a Journal keeps the disk as it was before a synchronisation, until that is
// complete. It is a part of the lifecycle, in the states None and Done.
type keptState uint8

const (
	notKept   keptState = iota
	keptNext            // pre-images are to be kept, from the next change on
	keptSince           // they are being kept
)

// arm has the disk, whose identity is id, kept as it is from the next change on, or not kept. A disk that
// is being kept already stays that of the first attempt.
func (l *lifecycle) arm(keep bool, id Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == keptSince {
		return
	}
	if l.kept = notKept; keep {
		l.kept = keptNext
	}
	l.keptID = id
}

// keptBegan notes that stable storage says so: the disk of which arm was told is kept.
func (l *lifecycle) keptBegan() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept, l.epoch = keptSince, l.keptID.Epoch
}

// keptEnded notes that the disk is kept no more, as stable storage says.
func (l *lifecycle) keptEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = notKept
}

// keeps reports whether the disk is kept, or will be from the next change on.
func (l *lifecycle) keeps() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept != notKept
}

func (l *lifecycle) isKeeping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept == keptSince
}

// keptAs returns the identity of what is kept.
func (l *lifecycle) keptAs() Identity {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keptID
}

// armKept has the disk, whose identity is own, kept if that is possible and useful. The whole disk
// is locked, or not in use.
func (s *Secondary) armKept(own Identity) {
	s.life.arm(s.cfg.Journal != nil && own.Disk != (ID{}) && own.State != CopyInconsistent, own)
}

// beginKept has pre-images kept from now on, if armKept has decided that the disk as it was is kept. A part of it is locked.
func (s *Secondary) beginKept() error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.life.isKeeping() || !s.life.keeps() {
		return nil
	}
	if err := s.meta.guardBy(s.journal); err != nil {
		return err
	}
	// The journal first, as in beginRun.
	id := s.life.keptAs()
	err := s.stable.setRunning(id.Epoch, id)
	if err == nil {
		err = s.meta.update(func(i *Identity, _ *peerBase) { i.State = CopyInconsistent })
	}
	if err != nil {
		return err
	}
	s.stable.emptied()
	s.life.keptBegan()
	return nil
}

// keep saves, in state None, the content that a change of [off, off+n)
// replaces, if armKept has decided that the disk as it was is kept. The range is
// locked.
func (s *Secondary) keep(off, n int64) error {
	if err := s.meta.guardBy(s.journal); err != nil {
		return err
	}
	if err := s.beginKept(); err != nil || !s.life.isKeeping() {
		return err
	}
	_, err := s.saveOld(off, n)
	if !errors.Is(err, ErrFull) {
		return err
	}
	if !s.cfg.GiveUpCheckpoint {
		return fmt.Errorf("%w: the synchronisation replaces more than the journal can keep of the last checkpoint; a larger one can, and GiveUpCheckpoint does without", err)
	}
	return s.giveUpKept()
}

// giveUpKept records that there is no checkpoint any more to which the disk could go back.
func (s *Secondary) giveUpKept() error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if !s.life.isKeeping() {
		return nil
	}
	id := s.identityAt(0)
	id.State = CopyInconsistent
	if err := s.meta.update(func(i *Identity, _ *peerBase) { *i = id }); err != nil {
		return err
	}
	if err := s.stable.setForgotten(id); err != nil {
		return err
	}
	s.life.keptEnded()
	return nil
}
