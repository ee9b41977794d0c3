package protect

import (
	"errors"
	"fmt"
)

// A host that has lost the other one stands still and asks who goes on. The other may have gone
// on by then, under a later generation, and seek a secondary: its first connection says so.

// overtook tells a session whose guest stands still that the other host goes on. A secondary asks
// no more then. A primary asks its arbiter, which knows. One without an arbiter gives its guest
// up to the host that has taken it over in this very session: by an operator's word, or by a
// switchover whose answer was lost. That host's guest is this one, and has said more since. A
// host of the same name that was started anew has another guest, and is not believed. j.mu is held.
func (j *Job) overtook(h hello) {
	s := j.current
	if j.m.state != Asking || s == nil || h.Channel != chControl || h.Host != s.peer.host || h.Generation <= s.peer.generation {
		return
	}
	why := fmt.Sprintf("%s goes on, in generation %d", h.Host, h.Generation)
	if s.primary == nil {
		s.peer.set(func() { s.peer.ended, s.peer.reason = true, why })
	} else if j.manual != nil && s.peer.token != "" && h.TookOver == s.peer.token {
		s.peer.set(func() { s.peer.goneOn = errors.New(why) })
	}
}

// goneOnWhy returns an error that says that the other side, a secondary, has gone on with the
// guest, or nil if nobody has said so.
func (p *peer) goneOnWhy() (err error) {
	p.get(func() { err = p.goneOn })
	return err
}
