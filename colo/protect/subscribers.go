package protect

import (
	"context"
	"fmt"
	"time"
)

// A subscriber of events may be slow, and one that does not return stops the checkpoints of a guest that stays
// protected by its state: an operator is told of it where that can be read without another event.

// watchSubscribers keeps an error for Query when subscribers have had an event for PeerTimeout, and then tries to
// log it, until ctx ends.
func (j *Job) watchSubscribers(ctx context.Context) {
	look := time.NewTicker(max(time.Millisecond, j.cfg.PeerTimeout/stallLooks))
	defer look.Stop()
	said := false
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		s := j.session()
		if s == nil {
			said = false
			continue
		}
		took := s.colo.Info().Telling
		if took < j.cfg.PeerTimeout {
			said = false
		} else if !said {
			said = true
			err := fmt.Errorf("protect: a subscriber of events, or the handler of the log, has not returned for %v: checkpoints and output wait for it", took.Truncate(time.Millisecond))
			j.note(err)
			at, _ := s.committed()
			j.ownLog().Warn("a subscriber of events does not return", "side", s.mode().String(), "checkpoint", at, "error", err) // last: it may be this log that hangs
		}
	}
}
