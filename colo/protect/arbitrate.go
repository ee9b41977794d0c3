package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// errUnasked ends the question to the arbiter without a refusal, because an operator has
// decided.
var errUnasked = errors.New("this host goes on by an operator's word")

// arbiter returns the session's colo.Arbiter: the guest stands still, and it is
// to be settled whether this host goes on.
func (j *Job) arbiter(s *session) colo.ArbiterFunc {
	return func(ctx context.Context, c colo.Claim) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(s.over, func() { cancel(context.Cause(s.over)) })()
		err := j.settle(ctx, s, c)
		leaves := s.over.Err() != nil
		if err != nil && leaves && !errors.Is(err, failover.ErrRefused) {
			err = fmt.Errorf("%w: %w", failover.ErrRefused, err) // nobody asks again
		}
		if err != nil && leaves {
			err = &ownEnd{err}
		}
		if err != nil && j.unasked(s, err) && !leaves {
			return errUnasked // Fenced is about to say so
		}
		if errors.Is(err, failover.ErrRefused) {
			s.mu.Lock()
			s.refusal = err
			s.mu.Unlock()
			j.fenceDisks()
		}
		return err
	}
}

// unasked reports whether an operator has said by Fenced that this host goes on, so that what the
// arbiter says does not count. If no operator has, and err is the arbiter's no, Fenced comes too
// late from now on.
func (j *Job) unasked(s *session, err error) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.m.state == TakingOver && !s.isEntrusted() {
		return true
	}
	j.given = errors.Is(err, failover.ErrRefused)
	return false
}

// settle does the work of the colo.Arbiter of a session: it finds out whether
// this host goes on with the guest.
func (j *Job) settle(ctx context.Context, s *session, c colo.Claim) error {
	s.endedBy(c.Cause)
	switch s.getPurpose() {
	case toPause, toCancel, toComplete: // the arbiter was asked before
		j.vm.face(true)
		return nil
	}
	j.vm.keep(nil)
	if s.getPurpose() == toHandOver {
		if j.handedOver(ctx, s) {
			return fmt.Errorf("%w: %w", failover.ErrRefused, errSwitchover)
		}
		s.setPurpose(noPurpose)
	}
	if s.over.Err() != nil {
		return fmt.Errorf("%w: this host leaves: %w", failover.ErrRefused, context.Cause(s.over))
	}
	s.sayWhy(c.Cause, j.cfg.Lost)
	if s.primary == nil {
		if j.manual == nil && !c.Ordered && !errors.Is(c.Cause, errOrdered) {
			j.hearOut(ctx, s)
		}
		if why := s.peer.endedWhy(); why != nil {
			return fmt.Errorf("%w: %w", failover.ErrRefused, why)
		}
	}
	why := j.betterThere(s, c)
	loss := s.lossOf(c.Cause, j.cfg.Lost)
	ends := s.inWords(loss)
	if !c.Ordered && !errors.Is(c.Cause, errOrdered) {
		s.lostBy(loss)
	}
	said := ends
	if why != nil {
		said = why.Error() + ": " + said
	}
	if j.do(broke, said) != nil && s.primary == nil && j.State() == Asking {
		c.Ordered = true // Failover has led to Asking, when the session had ended already
	}
	j.vm.keep(nil) // a switchover that began at the same time may have set it; none can any more
	switch st := j.State(); {
	case st == Asking, st == TakingOver && s.isEntrusted():
	default: // deposed, or stopped
		return fmt.Errorf("%w: this host is %s", failover.ErrRefused, st)
	}
	if s.primary == nil {
		if err := j.keepPromise(ctx, s); err != nil {
			return err
		}
	} else if why != nil {
		if err := j.giveAway(ctx, s, why); err != nil {
			return err
		}
	}
	fences := j.cfg.Fencer != nil && s.primary == nil
	if fences {
		j.keeper.Bar() // what is granted is not used before the other host is fenced off
		defer j.keeper.Unbar()
	}
	generation, err := j.claim(ctx, s, c)
	if err != nil {
		return err
	}
	j.learn(generation)
	j.recordSoon(ctx, generation)
	if fences && s.getPurpose() != toTakeHand {
		if err := j.fence(ctx, generation); err != nil {
			return err
		}
		if j.keeper.Generation() < generation { // which the arbiter has said meanwhile, to a host that asks
			return fmt.Errorf("%w: generation %d was over before the other host was fenced off", failover.ErrRefused, generation)
		}
	}
	j.keeper.Unbar()
	j.vm.face(true)
	if err := j.do(granted, ends); err != nil {
		return fmt.Errorf("%w: %w", failover.ErrRefused, err) // stopped
	}
	s.trust(false)
	return nil
}

// claim asks the arbiter, unless the other side has said, or says meanwhile, that
// it ends the session on purpose: a secondary must not go on then, and a primary
// need not fear that the other does. A primary asks no more either when its secondary has gone
// on. What a secondary has been granted and does not use is no later copy of the guest: a primary
// claims it after that.
func (j *Job) claim(ctx context.Context, s *session, c colo.Claim) (uint64, error) {
	word := c.Ordered || errors.Is(c.Cause, errOrdered) || errors.Is(c.Cause, errSwitchover) || s.saidWhose()
	ask, over := s.peer.until(ctx, func() bool { return s.peer.ended || s.peer.goneOn != nil })
	asked := j.askOther(ask, s)
	generation, err := j.acquireFrom(ask, s.peer.generation, s.givenBy(), word)
	if errors.Is(err, failover.ErrRefused) && s.primary == nil && s.peer.heard > 0 && j.manual == nil {
		generation, err = j.acquireAfter(ask, s.peer.heard, s.peer.generation, word)
	}
	over()
	asked()
	if errors.Is(err, failover.ErrRefused) {
		s.mu.Lock()
		s.denied = true
		s.mu.Unlock()
	}
	if why := s.peer.goneOnWhy(); why != nil && err != nil {
		return 0, fmt.Errorf("%w: %w", failover.ErrRefused, why)
	}
	if why := s.peer.endedWhy(); why != nil && err != nil && !errors.Is(err, failover.ErrRefused) {
		if s.primary == nil {
			return 0, fmt.Errorf("%w: %w", failover.ErrRefused, why)
		}
		generation, err = j.acquire(ctx, s.peer.generation, true)
	}
	if unused := s.peer.notUsed(); unused > 0 && j.manual == nil && errors.Is(err, failover.ErrRefused) {
		return j.acquire(ctx, unused, word)
	}
	return generation, err
}

// givenBy returns the token of the primary if that has given the guest up for this host, a secondary; "" if it has not.
func (s *session) givenBy() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.from
}

// saidWhose reports whether what was said in a switchover gives the guest to this host, however
// its session has ended since: a secondary was told to go on, or has told a primary that it cannot.
func (s *session) saidWhose() (said bool) {
	if s.primary == nil {
		return s.wasHanded()
	}
	s.peer.get(func() { said = s.peer.verdict == sayCannot })
	return said
}

// hearOut waits until this host, a secondary, has read what the other has said last.
// That a guest has ended comes on another connection than the end of its session, and
// may be read later. A host that has left or was killed has closed that connection as
// well, and one that is silent says nothing more, so this takes time only where a
// primary lives whose session has broken: no more than after which it would be lost.
func (j *Job) hearOut(ctx context.Context, s *session) {
	waiting, cancel := context.WithTimeout(ctx, j.cfg.Lost)
	defer cancel()
	p := s.peer
	p.await(waiting, func() bool { return p.ended || p.gone || p.silent || p.released })
}

// keepPromise waits until this host may claim the guest, unless the other side
// says that the session ended on purpose. Whoever has given the guest back acts no
// longer on a promise.
func (j *Job) keepPromise(ctx context.Context, s *session) error {
	for {
		if err := s.peer.endedWhy(); err != nil {
			return fmt.Errorf("%w: %w", failover.ErrRefused, err)
		}
		var wait time.Duration
		s.peer.get(func() {
			if !s.peer.released && !s.peer.gaveBack {
				wait = time.Until(s.peer.pledge)
			}
		})
		if wait <= 0 || j.manual != nil {
			return nil
		}
		waiting, cancel := context.WithTimeout(ctx, wait)
		s.peer.await(waiting, func() bool { return s.peer.ended || s.peer.released || s.peer.gaveBack })
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// gaveBack reports whether the arbiter's record says that the holder of a generation has
// released it. It shuts its gate before it says so, and nothing opens that again for
// this generation: no promise either.
func gaveBack(r failover.Record, generation uint64) bool {
	return generation > 0 && r.Generation == generation && !r.Held()
}

// fence calls the Fencer until it has made sure that the other host no longer
// acts for the guest, for as long as that takes.
func (j *Job) fence(ctx context.Context, generation uint64) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := j.fenceOnce(ctx, generation)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		j.note(fmt.Errorf("fence: %w", err))
		if err := wait.For(ctx, pause); err != nil {
			return err
		}
	}
}
