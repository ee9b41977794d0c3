package protect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/failover/heartbeat"
)

// A lossError says in words how the other host was lost. cause is the error that was noticed
// first, whose meaning the words give.
type lossError struct {
	words string
	cause error
}

func (e *lossError) Error() string { return e.words }
func (e *lossError) Unwrap() error { return e.cause }

// lossOf returns the end of a session as an operator is told of it: in words if nothing more
// comes from the other host, and otherwise unchanged.
func (s *session) lossOf(cause error, lost time.Duration) error {
	p := s.peer
	var silent, ended bool
	p.get(func() { silent, ended = p.lost && p.silent, p.lost && !p.silent || p.gone })
	var wire bool
	if s.wire != nil {
		var over bool
		over, wire = s.wire.ended(cause)
		ended = ended || over
	}
	ended = ended && (isEnd(cause) || wire)
	switch {
	case errors.Is(cause, heartbeat.ErrLost) && silent:
		return &lossError{fmt.Sprintf("%s was silent for %v: it has died or stands still, or the network between the two hosts is cut", p.host, lost), cause}
	case (ended || errors.Is(cause, heartbeat.ErrGoodbye)) && p.gaveUp() != "":
		return &lossError{p.gaveUp(), cause}
	case ended:
		return &lossError{fmt.Sprintf("the connections with %s have ended, and it has said nothing: its process has died or was killed, or the network has cut them", p.host), cause}
	}
	return cause
}

// gaveUp returns, as an operator is told, why the other side has ended the session; "" if it has not said
// that.
func (p *peer) gaveUp() (words string) {
	p.get(func() {
		if p.why != "" {
			words = p.host + " has ended the session: " + p.why
		}
	})
	return words
}

// sayWhy tells the other side, which may live, why the session ends, if this side is the one that ends it,
// and nobody has ordered that of both. It waits for no answer: what is not heard is told as the loss that
// it looks like.
func (s *session) sayWhy(cause error, lost time.Duration) {
	if s.inOrder() {
		return
	}
	loss := s.lossOf(cause, lost)
	var inSession *colo.Error
	var silent bool
	s.peer.get(func() { silent = s.peer.silent })
	switch {
	case silent && errors.Is(cause, heartbeat.ErrLost):
	case isEnd(cause), loss != cause, errors.Is(cause, heartbeat.ErrGoodbye): // the other side has ended it
		return
	case errors.Is(cause, colo.ErrStalled):
		loss = fmt.Errorf("%s was too slow for a checkpoint", s.peer.host)
	case errors.As(cause, &inSession):
		loss = inSession.Err
	}
	s.peer.sayAtOnce(note{Say: sayWhy, Reason: loss.Error()})
}

// atOnce is how long a note may take to be written that nobody waits for.
const atOnce = 10 * time.Millisecond

// sayAtOnce sends a note, unless that would take long.
func (p *peer) sayAtOnce(n note) {
	late := time.Now().Add(atOnce)
	timer := time.NewTimer(atOnce)
	defer timer.Stop()
	select {
	case p.write <- struct{}{}: // whoever writes already is about to be done
	case <-timer.C:
		return
	}
	defer func() { <-p.write }()
	var control net.Conn
	p.get(func() { control = p.control })
	control.SetWriteDeadline(late)
	writeNote(control, n)
}

// isEnd reports whether an error is that of a connection that the other side, or the network, has
// ended.
func isEnd(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, end) {
			return true
		}
	}
	return errors.Is(err, heartbeat.ErrLost)
}

// A sinceError is what has gone wrong since the other host was lost.
type sinceError struct{ loss, since error }

func (e *sinceError) Error() string   { return fmt.Sprintf("%v; since then: %v", e.loss, e.since) }
func (e *sinceError) Unwrap() []error { return []error{e.loss, e.since} }

// lostBy notes the loss by which the session ends.
func (s *session) lostBy(loss error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loss = loss
}

// lossWith returns the loss after which this host has gone on, unless somebody has ended the
// session on purpose, and what has failed then, if anything has.
func (s *session) lossWith(failed error) error {
	s.mu.Lock()
	loss := s.loss
	s.mu.Unlock()
	switch {
	case loss == nil || s.inOrder():
		return failed
	}
	ended := &lossError{cause: loss}
	var silent bool
	s.peer.get(func() { silent = s.peer.silent })
	if words := s.peer.gaveUp(); words != "" && !silent && (errors.As(loss, &ended) || errors.Is(loss, heartbeat.ErrGoodbye)) {
		loss = &lossError{words, ended.cause} // it has been heard since
	}
	switch {
	case failed == nil || errors.Is(failed, loss):
		return loss
	}
	return &sinceError{loss, failed}
}

// refusedWith returns the end of a session after which this host was refused the guest, with the
// loss in words in the place of what was noticed first. Any other end is returned unchanged.
func (s *session) refusedWith(end error) error {
	s.mu.Lock()
	refusal := s.refusal
	s.mu.Unlock()
	loss := s.lossWith(nil)
	if refusal == nil || loss == nil || !errors.Is(end, refusal) || errors.Is(refusal, loss) {
		return end
	}
	return &lossError{fmt.Sprintf("%v (%v)", refusal, loss), end}
}

// lossSince returns, for Query, when something went wrong last, and what, on a host that has asked
// since a time who goes on, given when and what went wrong last of all else.
func (s *session) lossSince(since, at time.Time, last error) (time.Time, error) {
	loss := s.lossWith(nil)
	switch {
	case loss == nil:
		return at, last
	case last == nil || at.Before(since):
		return since, loss
	}
	return at, &sinceError{loss, last}
}

// noteLoss keeps for Query why a session has ended, after which the guest runs on here
// unprotected; nil: by an order. What else goes wrong up to the next time that the guest is
// protected is told beside it.
func (j *Job) noteLoss(err error) {
	j.mu.Lock()
	if j.m.state.lasts() {
		j.loss = err
	}
	j.mu.Unlock()
	j.note(err)
}

// beside returns an error as Query tells it. j.mu is held.
func (j *Job) beside(err error) error {
	if j.loss == nil || err == j.loss || errors.Is(err, j.loss) {
		return err
	}
	if strings.Contains(j.loss.Error(), err.Error()) {
		return j.loss // it has gone wrong again
	}
	return &sinceError{j.loss, err}
}

// lasts reports whether the guest has been unprotected, in a state, since the other host was lost.
func (s State) lasts() bool { return s == Alone || s == Synchronising || s == TakingOver }
