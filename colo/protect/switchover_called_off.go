package protect

import (
	"context"
	"errors"
	"fmt"
)

// callOff ends a switchover that has come no further than sendLast, leaves the session as it is, and has the
// guest run on here. It returns false if the session is over, or has to end: a disk here has failed,
// or the guest cannot be resumed, and the other host may have it.
//
// Nobody else can have the guest then. This host has not begun to give its grant back, so the arbiter grants
// it to nobody; the secondary has promised not to claim it, and was not told to go on. Whatever ends
// the session at this moment finds the state that says so, or one in which a switchover is no more.
func (j *Job) callOff(s *session, verb input, why error) bool {
	if j.diskFailed() != nil && !errors.Is(why, errNoArbiter) { // which is before the guest stands still for it
		return false
	}
	if _, err := j.enter(calledOff, fmt.Sprintf("the %v was given up: %v", verb, why), s); err != nil {
		return false
	}
	s.mu.Lock()
	s.calledOff++ // its last checkpoint may be still to come, while the next switchover is under way
	s.migrates, s.rounds, s.last, s.received = false, false, 0, 0
	s.mu.Unlock()
	j.vm.keep(nil)
	// It may stand still by now. Where the session ends meanwhile it pauses the guest, before or after this.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.over), j.cfg.PeerTimeout)
	defer cancel()
	if err := j.vm.runOn(ctx); err != nil {
		j.note(fmt.Errorf("protect: resume the guest: %w", err))
		return false
	}
	s.peer.say(note{Say: sayStays})
	return true
}
