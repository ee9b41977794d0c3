package protect

import (
	"context"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
)

// heard acts upon what the other side says on the control connection.
func (j *Job) heard(s *session, n note) {
	switch n.Say {
	case sayAsk: // of a secondary: not to claim the guest for a while
		if s.primary != nil || n.TermNS <= 0 {
			return
		}
		if term := min(time.Duration(n.TermNS), maxPledge); j.pledges(s, term) {
			s.peer.say(note{Say: sayPromise, Seq: n.Seq, TermNS: int64(term)})
		}
	case sayPromise:
		if s.primary == nil {
			return
		}
		if sent, term, ok := s.promises.answer(n); ok {
			j.keeper.Promised(s.peer.generation, sent, term)
			s.peer.set(func() { s.peer.promised = true })
		}
	case sayFull:
		if s.primary != nil {
			s.primary.RequestCheckpoint(event.CauseLimit)
		}
	case sayEnd:
		s.endsInOrder(s.peer.endedWhy())
		s.peer.say(note{Say: sayHeard})
	case sayLeaves:
		s.endsInOrder(&leavesError{s.peer.host})
		s.peer.say(note{Say: sayFarewell})
	case sayLast:
		if _, whole := s.committed(); s.primary == nil && whole && (n.Seq > 0 || !compares(j.cfg.Network)) {
			j.leaveStanding()
		}
	case sayStays:
		if s.primary == nil && !s.wasHanded() {
			j.letRun(s)
		}
	case sayGrow:
		j.heardGrow(s, n)
	case sayReach:
		j.heardReach(s, n)
	case sayGo:
		j.takeHand(s, n)
	case sayRuns, sayCannot:
		if n.Say == sayRuns {
			defer s.peer.say(note{Say: sayHeard})
		}
		if s.getPurpose() != toHandOver {
			if _, whole := s.committed(); n.Say == sayCannot && s.primary != nil && !whole {
				s.colo.Lost(&RefusedError{Reason: n.Reason, There: true})
			}
			return
		}
		why := errSwitchover
		if n.Say == sayCannot { // it is not carried out
			s.colo.Expect(nil)
			why = fmt.Errorf("%w: %s cannot: %s", errSwitchover, s.peer.host, n.Reason)
		}
		s.colo.Lost(why)
	}
}

// maxPledge bounds what a primary can ask for.
const maxPledge = time.Minute

// pledges promises for a host that follows not to claim the guest for a term from now, and
// reports whether it follows. Both are one step, because a host that follows no more looks only
// once whether it has promised.
func (j *Job) pledges(s *session, term time.Duration) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.m.state != Following {
		return false
	}
	s.peer.set(func() {
		if until := time.Now().Add(term); until.After(s.peer.pledge) {
			s.peer.pledge = until
		}
	})
	return true
}

// leaveStanding keeps the guest of this secondary paused when it is in the state of the epoch in
// which this host is to go on: if it ran, it would only be paused again, while nobody runs the guest. A
// session that has ended resumes what it has left standing.
func (j *Job) leaveStanding() { j.keepFollowing(func() {}) }

// letRun takes leaveStanding back: the guest of this secondary runs again, and is resumed by each checkpoint.
func (j *Job) letRun(s *session) {
	j.keepFollowing(nil)
	s.begins(func(ctx context.Context) {
		if err := j.vm.runOn(ctx); err != nil && ctx.Err() == nil {
			err = fmt.Errorf("resume the guest: %w", err)
			s.sayWhy(err, j.cfg.Lost) // before the connections end
			s.colo.Lost(err)
		}
	})
}

// keepFollowing calls keep of the vm, if this host follows.
func (j *Job) keepFollowing(held func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.m.state == Following {
		j.vm.keep(held)
	}
}

// takeHand does the secondary's part of a switchover: the primary's guest stands still in the
// epoch of the note, and the arbiter has been told that it is released, or the note says from whom this
// host is to claim it. The note may come as soon
// as this host has received all of that epoch, while it is still committing it. It then goes on
// when it has committed it, which nothing but a failure of its own can prevent.
func (j *Job) takeHand(s *session, n note) {
	if s.primary != nil {
		return
	}
	s.mu.Lock()
	epoch, whole, again := s.epoch, s.whole, s.early != nil
	early := whole && epoch+1 == n.Seq
	if s.early = nil; early {
		s.early, s.migrates = &n, n.Migrate
	}
	s.from = n.From
	s.mu.Unlock()
	cannot := func(reason string) {
		s.mu.Lock()
		s.early, s.from = nil, "" // whoever says so claims nothing by this note
		s.mu.Unlock()
		s.peer.say(note{Say: sayCannot, Reason: reason})
	}
	// The primary is there, stands still, and has a copy that may be good.
	if err := j.diskFailed(); err != nil && !again {
		cannot(err.Error())
		return
	}
	if early {
		s.peer.set(func() { s.peer.released = true })
		s.colo.Expect(errSwitchover)
		j.leaveStanding()
		return
	}
	// A later checkpoint, of the same guest that stands still, is as good.
	if !whole || epoch < n.Seq {
		cannot(fmt.Sprintf("the last checkpoint here is %d, not %d", epoch, n.Seq))
		return
	}
	in := doFailover
	if j.manual != nil {
		// An operator must not see a host that asks: the primary has released the guest for this
		// one, and nobody else is asked.
		in = entrusted
		s.trust(true)
	}
	if j.do(in, s.peer.host+" hands the guest over") != nil {
		s.trust(false)
		cannot("this host is " + j.State().String())
		return
	}
	s.peer.set(func() { s.peer.released = true })
	s.mu.Lock()
	s.migrates = n.Migrate
	s.mu.Unlock()
	s.setPurpose(toTakeHand)
	s.secondary.Handed(errSwitchover)
}
