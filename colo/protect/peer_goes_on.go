package protect

import (
	"errors"
	"fmt"
)

// A host that has lost the other one stands still and asks who goes on. The other may have gone
// on by then, under a later generation. If it seeks a secondary its first connection says so. If it
// does not, as one whose protection is paused or cancelled, it says so when it is asked (askOther).

// overtook tells a session for which it is not settled yet who goes on that the other host goes on, and seeks a
// secondary. j.mu is held.
func (j *Job) overtook(h hello) {
	if s := j.current; s != nil && h.Channel == chControl && (j.m.state == Asking || s.isEntrusted()) {
		s.overtakenBy(h)
	}
}

// overtakenBy takes the hello of a host that goes on, and reports whether that is the other host of
// this session, in a later generation. A secondary then stops asking. A primary gives its guest up to
// the host that has taken it over in this very session: by its arbiter's grant, of which this host need not be
// told by an arbiter that it may not reach, by an operator's word, or by a switchover whose answer was
// lost. That host's guest is this one, and has said more since. A host of the same name that was started
// anew has another guest, and is not believed.
func (s *session) overtakenBy(h hello) bool {
	p := s.peer
	if h.Host != p.host || h.Generation <= p.generation {
		return false
	}
	why := fmt.Sprintf("%s goes on, in generation %d", h.Host, h.Generation)
	switch {
	case s.primary == nil:
		p.set(func() { p.ended, p.reason = true, why })
	case p.token != "" && h.TookOver == p.token:
		p.set(func() { p.goneOn = errors.New(why) })
	default:
		return false
	}
	return true
}

// goneOnWhy returns an error that says that the other side, a secondary, has gone on with the
// guest, or nil if nobody has said so.
func (p *peer) goneOnWhy() (err error) {
	p.get(func() { err = p.goneOn })
	return err
}
