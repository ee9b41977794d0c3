package protect

import (
	"context"
	"fmt"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// betterThere returns why this host, a primary, must leave its guest to the other, if
// it must: a disk has failed here, or the guest could not be resumed, and the other host has a whole
// copy of the guest.
func (j *Job) betterThere(s *session, c colo.Claim) error {
	if _, whole := s.committed(); s.primary == nil || !whole || c.Ordered {
		return nil
	}
	if err := j.diskFailed(); err != nil {
		return fmt.Errorf("the other host has the good copy: %w", err)
	}
	if err := j.vm.cannotRun(); err != nil {
		return fmt.Errorf("the guest cannot be resumed here, and the other host has a copy: %w", err)
	}
	return nil
}

// giveAway gives the guest, which stands still, to the other host, for the reason
// why. A nil error says that the other does not go on with it, and that this host is to
// claim it as if nothing had failed: a guest whose flushes fail is better than none. Any
// other matches failover.ErrRefused, or is that of the end of ctx.
//
// The other host acquires what this host has released at once, if it is told, and otherwise when
// it has lost this host and its promise is over. So two terms after the release it has the guest,
// or is not there. A claim of this host that comes later, after the same generation, is refused
// if the other was faster after all.
func (j *Job) giveAway(ctx context.Context, s *session, why error) error {
	if j.manual != nil {
		// Only an operator knows whether the other host can go on. If the operator says so
		// there, this host hears it from that one; if that is dead, there is no guest but
		// the one here.
		j.note(why)
		return nil
	}
	why = fmt.Errorf("%w: %w", failover.ErrRefused, why)
	p := s.peer
	if p.endedWhy() == nil {
		j.releaseTo(ctx, s)
	}
	answered, over := p.until(ctx, func() bool { return p.ended || p.verdict == sayCannot })
	defer over()
	waiting, cancel := context.WithTimeout(answered, 2*j.cfg.Term+j.cfg.Lost)
	defer cancel()
	if !j.takenOver(waiting, s) {
		return context.Cause(ctx)
	}
	// It has been granted the guest. What it says then is whether it has used that.
	hearing, heard := context.WithTimeout(ctx, j.cfg.PeerTimeout)
	defer heard()
	p.await(hearing, func() bool { return p.ended || p.verdict != "" || p.gone })
	if p.notUsed() == 0 {
		return why
	}
	return context.Cause(ctx)
}

// releaseTo releases the guest and tells the other host, as far as both can be
// reached. If not, the grant runs out.
func (j *Job) releaseTo(ctx context.Context, s *session) {
	// What this host has let go is out before the other may say anything.
	j.letOut(ctx)
	ctx, cancel := context.WithTimeout(ctx, j.cfg.Term)
	defer cancel()
	epoch, _ := s.committed()
	if err := j.tellArbiter(ctx, s.peer.generation); err != nil {
		j.note(fmt.Errorf("release: %w", err))
		return
	}
	if err := j.keeper.ReleaseGeneration(ctx, s.peer.generation, fmt.Sprintf("left to %s at checkpoint %d", s.peer.host, epoch)); err != nil {
		j.note(fmt.Errorf("release: %w", err))
		return
	}
	s.peer.say(note{Say: sayGo, Seq: epoch})
}

// takenOver waits, until ctx ends, for the other host to have acquired the guest.
func (j *Job) takenOver(ctx context.Context, s *session) bool {
	seen, err := j.cfg.Arbiter.Record(ctx)
	for {
		switch {
		case err == nil && seen.Generation > s.peer.generation:
			return seen.Token != j.token // this host's, by a verb whose answer was lost
		case ctx.Err() != nil, err != nil && wait.For(ctx, minRedial) != nil:
			return false
		}
		if r, e := j.cfg.Arbiter.Watch(ctx, seen); e == nil {
			seen, err = r, nil
		} else {
			err = e
		}
	}
}
