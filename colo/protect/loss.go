package protect

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/gocolo/lockstep/failover/heartbeat"
)

// A lossError says in words how the other host was lost. What was noticed of it first, of which
// the words say what it means, is behind it.
type lossError struct {
	words string
	cause error
}

func (e *lossError) Error() string { return e.words }
func (e *lossError) Unwrap() error { return e.cause }

// lossOf returns the end of a session as an operator is told of it: in words where it is that
// nothing more comes from the other host, and else as it is.
func (s *session) lossOf(cause error, lost time.Duration) error {
	p := s.peer
	var silent, ended bool
	p.get(func() { silent, ended = p.lost && p.silent, p.lost && !p.silent || p.gone })
	var wire error
	if s.wire != nil {
		if err := s.wire.ended.Load(); err != nil {
			ended, wire = true, *err
		}
	}
	switch {
	case errors.Is(cause, heartbeat.ErrLost) && silent:
		return &lossError{fmt.Sprintf("%s was silent for %v: it has died or stands still, or the network between the two hosts is cut", p.host, lost), cause}
	case ended && (isEnd(cause) || wire != nil && errors.Is(cause, wire)):
		return &lossError{fmt.Sprintf("the connections with %s have ended, and it has said nothing: its process has died or was killed, or the network has cut them", p.host), cause}
	}
	return cause
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
	case failed == nil || errors.Is(failed, loss):
		return loss
	}
	return &sinceError{loss, failed}
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
