package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// comesIntoStep is called at the first checkpoint of a session, on the primary. If a disk has
// failed here it has the guest brought to the secondary.
func (j *Job) comesIntoStep(s *session) {
	why := j.diskFailed()
	if why == nil {
		j.do(inStep, "")
	} else if j.do(inStep, fmt.Sprintf("is about to be handed to %s: %v", s.peer.host, why)) == nil {
		j.evacuate(s, why)
	}
}

// evacuate brings the guest to the secondary, which has just got a whole copy of it, away
// from a disk here that had failed before the session began. A switchover that does not
// come about ends the session, as any does, and the guest is then settled as in the
// session in which a disk fails; but while the arbiter is known not to answer the pair stays in step, since
// nobody could be granted the guest, and it is tried again when the arbiter does.
func (j *Job) evacuate(s *session, why error) {
	j.inBackground(func() {
		ctx, end := j.while(context.Background(), Protected, SwitchingOver, Asking)
		defer end()
		for j.session() == s {
			err := j.Switchover(ctx)
			if err == nil {
				return
			}
			j.note(fmt.Errorf("%w: %w", err, why))
			if !errors.Is(err, errNoArbiter) {
				return
			}
			for first := true; first || j.asked.away.Load(); first = false {
				if wait.For(ctx, maxRedial) != nil {
					return
				}
			}
		}
	})
}

// maxAgain bounds the time between two sessions that leave the guest over a failed disk.
const maxAgain = time.Minute

// again waits, after a session that has left the guest here, before the next may begin:
// whoever failed to follow once may fail again at once. Over a disk here that has failed
// each session costs a synchronisation, and one that ends at its first checkpoint a
// generation, and the one after it may fail as well: the time doubles with each.
func (j *Job) again(ctx context.Context, s *session) {
	if j.State() != Alone {
		j.vain = 0
		return
	}
	var pause time.Duration
	if why := j.diskFailed(); why != nil {
		pause = min(maxRedial<<min(j.vain, 10), maxAgain)
		j.vain++
		if err := s.ended(); err != nil {
			why = fmt.Errorf("%w; the last session: %w", why, err)
		}
		j.note(fmt.Errorf("protection is tried again in %v: %w", pause, why))
	} else {
		j.vain = 0
		if s.unharmed || s.fellShort() {
			pause = maxRedial
		}
	}
	act, end := j.while(ctx, Alone)
	defer end()
	wait.For(act, pause)
}

// fellShort reports whether the session has failed before the secondary was in step.
func (s *session) fellShort() bool {
	_, whole := s.committed()
	return !whole && !s.inOrder()
}

// ended returns why the session ended, as far as its arbiter was told or Run has said.
func (s *session) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

func (s *session) endedBy(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.cause = err
	}
}
