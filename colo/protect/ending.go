package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// A session that somebody ends on purpose. Whoever does so says it before it closes a connection,
// and waits until that was heard, so that the other side does not take it for a loss.

// hearTime is how long the other side has to hear that a session is about to end. One that
// does not is told of it by the end itself.
const hearTime = 250 * time.Millisecond

var (
	// errInOrder is matched by endedError, leavesError and ownEnd, in which the ends below reach
	// a session. The session expects it from the moment on in which somebody has ended it on
	// purpose, whichever side is heard of first; colo.ErrEndedByPeer in its place, if that is the other side.
	errInOrder = errors.New("the session was ended on purpose")

	// errEnded is how a session ends when the other side says that it ends it on purpose, and that
	// nobody but that side is to go on.
	errEnded = errors.New("the other side has ended the session")

	// errLeaves is how a session ends when the Run of the other side is about to end.
	errLeaves = errors.New("the other side leaves")

	// errEnding says that a session ends by an order on this host: Pause, Cancel or Complete.
	errEnding error = &ownEnd{errors.New("the protection was ended")}
)

// An ownEnd is an error that matches errInOrder: this host ends the session, by an order or
// because Run's context has ended.
type ownEnd struct{ error }

func (e *ownEnd) Is(target error) bool { return isInOrder(target) }
func (e *ownEnd) Unwrap() error        { return e.error }

// An endedError is errEnded in the words in which an operator reads it. It matches errEnded, and
// ErrCompleted if there is no guest any more.
type endedError struct {
	words    string
	complete bool
}

func (e *endedError) Error() string { return e.words }

// Is reports whether it matches target.
func (e *endedError) Is(target error) bool {
	return target == errEnded || isInOrder(target) || e.complete && target == ErrCompleted
}

// A leavesError is errLeaves, with the name of the host that leaves.
type leavesError struct{ host string }

func (e *leavesError) Error() string        { return e.host + " leaves" }
func (e *leavesError) Is(target error) bool { return target == errLeaves || isInOrder(target) }

// endedWhy returns an error that says that the other side ends the session on purpose, or has
// gone on, and why; nil if it does not.
func (p *peer) endedWhy() (err error) {
	p.get(func() {
		if p.ended {
			err = &endedError{words: p.endWords(), complete: p.complete}
		}
	})
	return err
}

// orderlyEnd returns what endedWhy does if the other side has said so itself, in a note, and
// otherwise nil.
func (p *peer) orderlyEnd() error {
	said := false
	p.get(func() { said = p.leaves })
	if !said {
		return nil
	}
	return p.endedWhy()
}

// endWords says what the other side has done. p.mu is held.
func (p *peer) endWords() string {
	switch {
	case p.complete:
		return "the guest has ended on " + p.host
	case p.verb == doPause.String() && p.reason == "":
		return p.host + " has paused the protection"
	case p.verb == doPause.String():
		return fmt.Sprintf("%s has paused the protection: %s", p.host, p.reason)
	case p.verb == doCancel.String():
		return p.host + " has ended the protection"
	case p.leaves && p.reason != p.host+" leaves": // by a verb of another version, which may send none
		return fmt.Sprintf("%s has ended the session: %s", p.host, p.reason)
	}
	return p.reason
}

// isInOrder reports whether an error is one of those that a session expects which somebody has ended on purpose.
func isInOrder(err error) bool { return err == errInOrder || err == colo.ErrEndedByPeer }

// endsInOrder ends the session because the other side has said that it ends it. That is not taken
// for a loss.
func (s *session) endsInOrder(why error) {
	if s.getPurpose() == noPurpose && !s.wasHanded() {
		s.colo.Expect(colo.ErrEndedByPeer)
	}
	s.colo.Lost(why)
}

// inWords returns why the session ends, as an operator is told.
func (s *session) inWords(cause error) string {
	departs := false
	s.peer.get(func() { departs = s.peer.departs })
	if departs { // whatever has noticed it first
		return (&leavesError{s.peer.host}).Error()
	}
	return cause.Error()
}

// whoEnded returns in words who has ended the session on purpose, and what for; "" if nobody has.
func (s *session) whoEnded() (words string) {
	host := s.peer.host
	switch s.getPurpose() {
	case toPause:
		return "the protection was paused on this host"
	case toCancel:
		return "the protection was ended on this host"
	case toComplete:
		return "the guest has ended on this host"
	case toHandOver:
		return "the guest is handed over to " + host
	case toTakeHand:
		return host + " hands the guest over"
	}
	s.peer.get(func() {
		switch {
		case s.peer.departs:
			words = (&leavesError{host}).Error()
		case s.peer.ended && s.peer.leaves:
			words = s.peer.endWords()
		}
	})
	if words == "" && s.over.Err() != nil {
		words = "this host leaves"
	}
	return words
}

// leave ends the session because Run is about to end here. Somebody here has asked for that, so
// it is no loss of the other side, unless the guest is being handed over: then the session ends
// as the switchover does.
func (s *session) leave(why error) {
	if s.getPurpose() == noPurpose && !s.wasHanded() {
		s.colo.Expect(errInOrder)
		s.peer.sayLeaves()
		why = &ownEnd{why}
	}
	s.colo.Lost(why)
}

// sayLeaves says that this host leaves, and waits until that was heard. If somebody else is
// writing to the connection it says nothing.
func (p *peer) sayLeaves() {
	select {
	case p.write <- struct{}{}:
	default:
		return
	}
	var control net.Conn
	p.get(func() { control = p.control })
	control.SetWriteDeadline(time.Now().Add(hearTime))
	err := writeNote(control, note{Say: sayLeaves})
	<-p.write
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), hearTime)
	defer cancel()
	p.await(ctx, func() bool { return p.farewell || p.ended || p.lost || p.gone })
}

// ordered returns err, by which the other side's connections have ended, as the end that this
// host has ordered, if it has. On an order of this host the other side closes them as it ends its
// session: it takes the guest over, or it has heard that there is nothing to follow any more.
// That may be noticed here before its word is heard, and before the session here has ended. The
// same goes for a host that leaves.
func (s *session) ordered(err error) error {
	switch s.getPurpose() {
	case noPurpose:
		if s.over.Err() != nil && !s.wasHanded() {
			return &ownEnd{err}
		}
	case toHandOver:
		return fmt.Errorf("%w: %w", errHandingOver, err)
	case toPause, toCancel, toComplete:
		return fmt.Errorf("%w: %w", errEnding, err)
	}
	return err
}

// inOrder reports whether the session ends on purpose, on either side.
func (s *session) inOrder() (ordered bool) {
	s.peer.get(func() { ordered = s.peer.leaves || s.peer.departs })
	return ordered || s.getPurpose() != noPurpose || s.wasHanded() || s.over.Err() != nil
}
