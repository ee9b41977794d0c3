package replication

import (
	"context"
	"errors"
	"fmt"
)

// Stop ends replication; the primary's writes are refused from now on. The
// guest is paused.
//
// With failover, what the guest sees becomes the content of the secondary disk:
// its own writes over the disk of the last checkpoint. That may be repeated
// after an error or a context that ended, see Commit. Without failover, the
// secondary disk is made that of the last checkpoint again, and the guest's own
// writes are dropped; what it writes from then on is refused with ErrNotRunning, since a primary
// that comes back takes the disk for that checkpoint. On an error nothing has changed for the guest, and Stop
// may be called again. After a synchronisation that was not completed, too,
// Stop without failover brings back the checkpoint of before, if a Journal has
// kept it.
//
// A primary may come back after a Stop without failover: with Adopt, the state
// is None again.
func (s *Secondary) Stop(ctx context.Context, failover bool) error {
	if s.State() == None && (failover || !s.life.isKeeping() && !s.life.startIsDue()) {
		return ErrNotRunning
	}
	s.life.gate() // for good
	defer s.tell()
	return s.dog.call(ctx, func() error { return s.stop(ctx, failover) })
}

func (s *Secondary) stop(ctx context.Context, failover bool) error {
	if failover {
		if over, err := s.promoteAsItIs(); over {
			return err
		}
		if err := s.beginFailover(); err != nil {
			return err
		}
		if s.cfg.DeferCommit {
			return nil
		}
		return s.commitAll(ctx)
	}
	h := s.lockAll()
	defer s.locks.unlock(h)
	err := s.makeUpForStart()
	switch s.State() {
	case Failover, Done:
		return err
	case Running, None:
	default:
		return fmt.Errorf("%w: state %v", ErrNotRunning, s.State())
	}
	if err == nil {
		err = s.complete()
	}
	if err == nil {
		err = s.restore(ctx)
	}
	if err != nil {
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			err = s.latch("restore", 0, 0, err)
		}
		return err
	}
	s.empty()
	s.life.ended()
	return nil
}

// outrunBy implements completer.
func (s *Secondary) outrunBy(epoch uint64) { s.life.outrunBy(epoch) }

// complete makes the checkpoint that another disk of the group has made, and for which this one is prepared: it
// could not be made before. Until it is, the content that it has replaced must not come back, since a recovery would
// take the disk for that of this checkpoint. The whole disk is locked.
func (s *Secondary) complete() error {
	epoch, outrun := s.life.toComplete()
	if !outrun {
		return nil
	}
	if err := s.syncDisk(); err != nil {
		return err
	}
	return s.reach(epoch)
}

// devices returns what a watchdog watches.
func (s *Secondary) devices() []*stableDisk {
	all := []*stableDisk{s.disk}
	if j := s.cfg.Journal; j != nil {
		all = append(all, j.hidden, j.active)
	}
	return all
}

// hung ends what depends on a device that was given up: the run, and the waiting of the guest.
func (s *Secondary) hung(err error) {
	s.latch("hung", 0, 0, err)
	s.Drain()
	s.tell()
}
