package protect

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// In a switchover it is the host that takes the guest that asks the arbiter, while the guest stands still. Where it does not
// reach the arbiter, or asks another one than this host, the guest would stand still in vain. So the
// primary has the secondary try that first, while the guest runs.

// errElsewhere calls a switchover off: the secondary asks an arbiter that does not know of this host's grant.
var errElsewhere = errors.New("the arbiter of the other host does not know of this one's grant")

// answersThere returns an error that matches errNoArbiter if the arbiter does not answer the secondary, and one that matches
// errElsewhere if that is another arbiter. One that does not heed failover.Claim.From, and that of a
// host of an earlier version, is not asked. Where there is no answer it is asked again: the secondary may have been
// finding the answer to the question before.
func (j *Job) answersThere(ctx context.Context, s *session) error {
	s.mu.Lock()
	s.reach++
	n := note{Say: sayReach, Seq: s.reach}
	s.mu.Unlock()
	for {
		gone := false
		answer := s.peer.answer(ctx, n, j.cfg.Lost, func() (*note, bool) {
			gone = s.peer.gone
			return s.peer.reaches, gone
		})
		switch {
		case answer == nil && gone: // there is no other before the switchover is over
			return fmt.Errorf("%w %s as far as is known: the control connection with that host has ended", errNoArbiter, s.peer.host)
		case ctx.Err() != nil:
			return fmt.Errorf("%w %s as far as is known: that host has not said whether it does: %w", errNoArbiter, s.peer.host, context.Cause(ctx))
		case answer == nil:
		case answer.Reason == "":
			return nil
		case answer.Elsewhere:
			return fmt.Errorf("%w: %s", errElsewhere, answer.Reason)
		default:
			return fmt.Errorf("%w %s: %s", errNoArbiter, s.peer.host, answer.Reason)
		}
	}
}

// heardReach answers the question whether the arbiter of this host, a secondary, answers, and whether it knows of the
// primary's grant. What is asked while that is being found out is not answered; the primary asks again.
func (j *Job) heardReach(s *session, n note) {
	if s.primary != nil || j.manual != nil || !s.reachesNow(true) {
		return
	}
	began := s.begins(func(ctx context.Context) {
		defer s.reachesNow(false)
		ask, cancel := context.WithTimeout(ctx, j.cfg.PeerTimeout/2)
		defer cancel()
		answer := note{Say: sayReaches, Seq: n.Seq}
		began := time.Now()
		if r, err := j.cfg.Arbiter.Record(ask); err != nil && ask.Err() != nil {
			answer.Reason = fmt.Sprintf("it has said nothing for %v", time.Since(began).Round(time.Millisecond))
		} else if err != nil {
			answer.Reason = err.Error()
		} else if !knows(r, s.peer) {
			answer.Elsewhere = true
			answer.Reason = fmt.Sprintf("on %s it knows of generation %d, held by %q, and %s acts in generation %d", j.cfg.Host, r.Generation, r.Holder, s.peer.host, s.peer.generation)
		}
		if ctx.Err() == nil {
			s.peer.say(answer)
		}
	})
	if !began {
		s.reachesNow(false)
	}
}

// reachesNow notes whether the arbiter is being asked for the primary, and reports whether that has changed.
func (s *session) reachesNow(on bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = s.reaching != on
	s.reaching = on
	return changed
}
