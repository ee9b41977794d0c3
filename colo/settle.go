package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// How long to wait before an arbiter that could not be asked is asked again:
// from askAgain, doubled each time, up to askAgainMost.
const (
	askAgain     = 100 * time.Millisecond
	askAgainMost = 5 * time.Second
)

// asked reports whether a failover was ordered, as opposed to a session that
// broke: it is decided when the order is given, not when a socket notices.
func (s *session) asked() bool {
	switch s.machine.Status() {
	case failover.Require, failover.Active, failover.Relaunch:
		return true
	}
	return false
}

// settle finds out who goes on, and returns nil if this side does. It may ask
// the arbiter, or wait for an order.
func (s *session) settle(ctx context.Context, cause error) error {
	if s.yielded() {
		return s.depart(s.yieldedFor(), cause)
	}
	if s.arbiter == nil {
		return s.awaitOrder(ctx, cause)
	}
	if !s.unfenced() {
		<-s.quit // at once, or when Fenced gets there
		return nil
	}
	s.setWhere(StateAsking)
	given, wait, last := ctx, askAgain, false
	for {
		if !last && ctx.Err() != nil {
			if s.mode != event.ModePrimary && !s.asked() {
				return s.depart(ctx.Err(), cause)
			}
			// The context has ended, and the guest of a primary stands still. The
			// arbiter is asked once more: if nobody else runs the guest, it need not
			// stay paused.
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), s.patience())
			defer cancel()
			last = true
		}
		ordered := s.asked()
		err := s.ask(ctx, Claim{Mode: s.mode, Epoch: s.committed(), Cause: cause, Ordered: ordered || errors.Is(cause, errEnd)}, ordered)
		switch {
		case !s.unfenced():
			<-s.quit // at once, or when Fenced gets there
			return nil
		case s.yielded():
			return s.depart(s.yieldedFor(), cause)
		case err == nil:
			return s.granted()
		case errors.Is(err, ErrRefused):
			return s.depart(err, cause)
		case ctx.Err() != nil && !last && (s.mode == event.ModePrimary || s.asked()):
			continue // it has ended during the question
		case ctx.Err() != nil:
			return s.depart(given.Err(), fmt.Errorf("%w (%w)", err, cause))
		case ordered != s.asked():
			continue // the order is asked for at once
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-s.fenced:
		case <-s.yields:
		case <-s.ordered(ordered):
		}
		timer.Stop()
		if s.yielded() && s.unfenced() {
			return s.depart(s.yieldedFor(), cause)
		}
		wait = min(2*wait, askAgainMost)
	}
}

// ordered returns a channel that is closed when an order is given, unless there
// was one.
func (s *session) ordered(already bool) <-chan struct{} {
	if already {
		return nil
	}
	return s.quit
}

// ask asks the arbiter once. An order that is given meanwhile ends the
// question. If an order was given before (ordered), only Fenced or Yield ends
// it.
func (s *session) ask(ctx context.Context, c Claim, ordered bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.asks(question{cancel, ordered})
	defer s.asks(question{})

	expected := s.expected()
	say := event.Arbitration{Mode: c.Mode, Epoch: c.Epoch, Ordered: c.Ordered || expected != nil, Answer: event.ArbiterAsked}
	if c.Cause != nil {
		say.Error = c.Cause.Error()
	}
	s.events.Publish(say)
	err := s.arbiter.Arbitrate(ctx, c)
	switch say.Error = ""; {
	case err == nil:
		say.Answer = event.ArbiterGranted
	case errors.Is(err, ErrRefused):
		say.Answer, say.Error = event.ArbiterRefused, err.Error()
		say.Released = expected != nil && errors.Is(err, expected)
	default:
		say.Answer, say.Error = event.ArbiterUnreachable, err.Error()
	}
	s.events.Publish(say)
	return err
}

// A question is one to the arbiter that is being asked. The zero question is none.
type question struct {
	end     context.CancelFunc // ends the context of the call
	ordered bool               // an order was given before: another is no news
}

// overtake ends the question since an order was given: by Fenced or Yield, after which nobody is
// asked, or another.
func (q question) overtake(last bool) {
	if q.end != nil && (last || !q.ordered) {
		q.end()
	}
}

// asks records which question is being asked, so that whoever gives an order ends it. If an order
// came before the question, asks ends the question at once.
func (s *session) asks(q question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = q
	if !s.unfenced() || s.yielded() {
		q.overtake(true)
	}
	select {
	case <-s.quit:
		q.overtake(false)
	default:
	}
}

// awaitOrder settles who goes on where there is no arbiter: whoever is told to.
func (s *session) awaitOrder(ctx context.Context, cause error) error {
	if !s.asked() {
		s.setWhere(StateAsking)
		select {
		case <-s.quit:
			return nil
		case <-s.yields:
			return s.depart(s.yieldedFor(), cause)
		case <-ctx.Done():
			if s.leave() {
				return departed(ctx.Err(), cause)
			}
		}
	}
	<-s.quit // at once, or when the order gets there
	return nil
}

// granted begins the failover after the arbiter has given this side the guest,
// in the same steps as an order would.
func (s *session) granted() error {
	err := s.machine.Request()
	if errors.Is(err, failover.ErrInProgress) {
		<-s.quit // an order came first and is about to say so
		return nil
	}
	if err != nil {
		return err
	}
	return s.beginGranted()
}

// beginGranted begins the failover that was requested for an arbiter. Fenced may have come
// since, and begun it.
func (s *session) beginGranted() error {
	_, err := s.machine.Begin()
	if err != nil && !s.unfenced() {
		<-s.quit
		return nil
	}
	return err
}

// depart is the end of a side that does not go on: an order that is not granted
// is withdrawn. It returns why, or nil if Fenced was called at the last moment.
func (s *session) depart(err, cause error) error {
	s.mu.Lock()
	fenced := !s.unfenced()
	ordered := s.asked()
	s.ended = !fenced
	s.mu.Unlock()
	if ordered {
		<-s.quit
	}
	switch {
	case fenced:
		return nil
	case ordered:
		if err := s.machine.Withdraw(); err != nil {
			return err
		}
	}
	return departed(err, cause)
}

// yielded reports whether Yield was called.
func (s *session) yielded() bool {
	select {
	case <-s.yields:
		return true
	default:
		return false
	}
}

// yieldedFor returns why this side gives its guest up. Lost may have been called
// before, with another reason.
func (s *session) yieldedFor() error {
	<-s.lost
	return s.lostErr
}

// departed joins why a side does not go on with why its session broke.
func departed(err, cause error) error {
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w (%w)", err, cause)
}
