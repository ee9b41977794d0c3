package replication

import (
	"context"
	"fmt"
)

// prepareStart records that the disk is started together with others. After a crash in
// between, either all of them are found started, or none is.
func (s *Secondary) prepareStart(ctx context.Context, together ID) error {
	return s.dog.call(ctx, func() error { return s.startTogether(together) })
}

func (s *Secondary) startTogether(together ID) error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch st := s.State(); {
	case st == Failover, st == Done && s.life.tookOver():
		return nil
	case st != None && st != Done:
		return fmt.Errorf("%w: state %v", ErrRunning, st)
	}
	if err := s.makeUpForStart(); err != nil {
		return err
	}
	if s.life.isBack() {
		return errBack
	}
	// What is left as it is must go back to the same checkpoint as the disks that were changed.
	s.armKept(s.meta.Identity())
	if err := s.beginKept(); err != nil {
		return err
	}
	if err := s.mayGoForward(); err != nil {
		return err
	}
	return s.stable.setStarting(together)
}

// Start makes the present content of the secondary disk the checkpoint of epoch 0. From
// now on the old content is saved before the primary's writes replace it. After a
// failover, where a promoted disk stays in its place while the host becomes a primary,
// Start does nothing, as in QEMU; after a Stop without failover it begins anew.
func (s *Secondary) Start(ctx context.Context) error { return s.dog.call(ctx, s.start) }

func (s *Secondary) start() error {
	defer s.tell()
	h := s.lockAll()
	defer s.locks.unlock(h)
	switch st := s.State(); {
	case st == Failover, st == Done && s.life.tookOver():
		return nil
	case st == None, st == Done:
	default:
		return fmt.Errorf("%w: state %v", ErrRunning, st)
	}
	return s.startLocked()
}

// startLocked does what Start does. The whole disk is locked.
func (s *Secondary) startLocked() error {
	if s.life.isBack() {
		return errBack
	}
	// After a crash, the record that replication has begun must not be there without the
	// writes of the first synchronisation.
	s.disk.wrote()
	if err := s.syncDisk(); err != nil {
		return err
	}
	if err := s.meta.failure(); err != nil {
		return err
	}
	if err := s.beginRun(); err != nil {
		return err
	}
	s.empty()
	s.life.began()
	return nil
}

// mayHaveStarted implements starter. It does not wait.
func (s *Secondary) mayHaveStarted() bool {
	j := s.cfg.Journal
	if j == nil {
		return false
	}
	if !j.mu.TryLock() { // the record is under way
		return true
	}
	defer j.mu.Unlock()
	return j.err != nil || !j.super.pending
}

// startMissed implements starter.
func (s *Secondary) startMissed() { s.life.missedStart() }

// makeUpForStart makes the start that other disks of the group have made, or may have, and this one could not, and
// leaves the disk at that checkpoint, in state None. Until it has, nothing changes the disk, for a
// recovery would take it to that start. The whole disk is locked.
func (s *Secondary) makeUpForStart() error {
	if !s.life.startIsDue() {
		return nil
	}
	if err := s.startLocked(); err != nil {
		return err
	}
	if err := s.restore(context.Background()); err != nil {
		return err
	}
	s.empty()
	s.life.readmitted()
	return nil
}
