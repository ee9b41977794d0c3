package colo

import (
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Failover orders this side to go on alone. With an Arbiter the order is a
// claim: the arbiter is asked, with Claim.Ordered set, before the peer hears
// of it, and Run takes over and returns nil if it grants; if it refuses, Run
// returns ErrRefused. Without an Arbiter the order itself decides, so whoever
// gives it knows that the other side does not run: see Fenced.
//
// It may be called from any goroutine at any time, also while the arbiter is
// asked for another reason, and does not wait for I/O. While a commit is under
// way it is carried out when the commit is done (relaunch). A second order
// returns failover.ErrInProgress, a torn guest failover.ErrTorn, and an order
// after the end of the session ErrEnded.
func (s *session) Failover() error {
	if err := s.order(); err != nil {
		return err
	}
	return s.begin()
}

// Fenced orders this side to go on alone because the other side is known not to
// run the guest: its host was powered off, or its operator has stopped it. The
// arbiter is not asked. If both sides are told so, both run: a split brain. In
// all else Fenced does what Failover does. After a Failover that is not settled
// yet it takes the place of the arbiter's answer, and returns nil.
func (s *session) Fenced() error {
	err := s.fence()
	if err != nil {
		return err
	}
	if err := s.begin(); err != nil && !errors.Is(err, failover.ErrInProgress) {
		var status *failover.StatusError
		if errors.As(err, &status) && status.Have != failover.Torn {
			return nil // the order before this one has begun it
		}
		return err
	}
	return nil
}

// fence records the order.
func (s *session) fence() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return fmt.Errorf("colo: %w", ErrEnded)
	}
	err := s.machine.Request()
	if errors.Is(err, failover.ErrInProgress) && !s.settled && s.unfenced() {
		err = nil
	}
	if err == nil {
		close(s.fenced)
		s.asking.overtake(true)
	}
	return err
}

// unfenced reports whether Fenced was not called yet.
func (s *session) unfenced() bool {
	select {
	case <-s.fenced:
		return false
	default:
		return true
	}
}

// begin starts the failover that was requested, at once or, if a commit is under way,
// when that ends.
func (s *session) begin() error {
	st, err := s.machine.Begin()
	if err != nil {
		return err
	}
	if st == failover.Active {
		s.shut()
	}
	return nil
}

// order requests a failover, unless the session has ended without one.
func (s *session) order() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return fmt.Errorf("colo: %w", ErrEnded)
	}
	return s.machine.Request()
}

// leave ends the session without a takeover. It returns false, and the session
// goes on, if a failover was ordered first: an order that was accepted is
// carried out.
func (s *session) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = !s.asked()
	return s.ended
}

// shut ends the session for a failover. The goroutine that made the failover active calls
// it, once. It sets the reason before it interrupts the link, so that COLO_EXIT always says
// request. The connection stays open until it is settled who goes on: the peer is told
// afterwards.
func (s *session) shut() {
	close(s.quit)
	s.mu.Lock()
	s.asking.overtake(false)
	s.mu.Unlock()
	s.link.interrupt()
	s.disks.Cut()
}

// End ends the protection on purpose, and with it the session, without a
// takeover. The primary's guest runs on unprotected, its held output leaves and
// its held writes pass; its Run returns nil. The secondary's guest stays paused
// and its Run returns an error that matches ErrGoodbye: it must not go on.
//
// The two sides say goodbye to each other in the session's connection. End of a
// primary takes effect between two checkpoints, and waits for the secondary's
// answer; a primary that gets none, because the link breaks or the peer is a
// QEMU, does not know what the other side does: its guest stands still until
// the arbiter grants it, or without one until Fenced is called. (Quit the QEMU
// first.) End of a secondary takes effect at once, or after the commit under
// way.
//
// It may be called from any goroutine at any time, any number of times, and does
// not wait for I/O. It returns ErrEnded after the end of the session, and
// failover.ErrInProgress if a failover was ordered before.
func (s *session) End() error {
	s.mu.Lock()
	switch {
	case s.ended:
		s.mu.Unlock()
		return fmt.Errorf("colo: %w", ErrEnded)
	case s.asked() || s.settled:
		s.mu.Unlock()
		return failover.ErrInProgress
	}
	first := !s.ending
	if first {
		s.ending = true
		close(s.wish)
	}
	s.mu.Unlock()
	if first {
		s.wished()
	}
	return nil
}

// Lost tells the session that the peer is gone, with the reason, before the
// connection has noticed. The host calls it when its heartbeat has ended and
// the host itself has not ended it. Who goes on is then settled as for a broken
// connection. It may be called from any goroutine at any time.
func (s *session) Lost(cause error) {
	if s.endFor(cause) { // nobody else who says so waits for the connections to close
		s.cut()
	}
}

// endFor records why the session is to end, if nobody has said so before, and reports whether nobody had.
func (s *session) endFor(cause error) (first bool) {
	s.once.Do(func() {
		if cause == nil {
			cause = ErrLost
		}
		s.lostErr = cause
		close(s.lost)
		first = true
	})
	return first
}

// Handed tells the session that the primary, whose guest stands still in the last checkpoint, has
// released it for this side, with the reason of that. It is Expect and Lost in one, of a peer that is
// there: the session ends and who goes on is settled as after those, but the connection is closed when the
// guest is known not to run here, or runs here and the peer has closed its end. Where that takes longer
// than HandedTime it is closed by then: its end tells the primary that this side has heard of it. It
// may be called from any goroutine at any time, and does nothing to a session that is ending already
// but what Expect does.
func (s *Secondary) Handed(cause error) {
	s.mu.Lock()
	s.expects, s.handed = cause, true
	s.mu.Unlock()
	if s.endFor(cause) {
		s.link.interrupt()
	}
}

// HandedTime is how long the connection of a session stays open after Handed.
const HandedTime = 10 * time.Millisecond

// wasHanded reports whether Handed was called.
func (s *session) wasHanded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed
}

// Expect tells the session that its end, however it shows itself, is one that was
// ordered, and why: the guest is about to be given to the other side on purpose,
// whose connection may break before the host comes to say so. COLO_EXIT's reason
// is request then, and without an error; a primary that has handed nothing over yet publishes
// PROTECTION_ENDED in place of PROTECTION_REFUSED. A Lost whose reason matches cause publishes
// no HEARTBEAT_LOST. A cause that matches ErrEndedByPeer says that the peer's host has ordered it. If the order is carried out by a refusal of the arbiter, and that
// error matches cause, the event says that it was wanted (Released in event.Arbitration).
// Who goes on is settled as ever, but a primary that hears a goodbye asks its arbiter, if it
// has one, nevertheless: the host may have given the guest back to it. Nil: no end is expected any
// more; what the host has given back it has given back, so that a goodbye says no more than before. The host
// calls Expect before it does what ends the session, from any goroutine,
// any number of times; the last call before COLO_EXIT counts. Expect returns false if it comes too late: a primary has
// heard a goodbye, upon which it goes on and asks nobody. The host must not give the guest away
// any more then.
func (s *session) Expect(cause error) (inTime bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expects, s.offered = cause, s.offered || cause != nil
	return !s.unasked
}

// goesOnUnasked settles that this side goes on without a question, since the other one does not, and reports
// whether that is so: where there is an arbiter, and the host may have given the guest back to it, it has to be asked.
func (s *session) goesOnUnasked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unasked = s.arbiter == nil || !s.offered
	return s.unasked
}

// expected returns what Expect was told, nil if no end is expected.
func (s *session) expected() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expects
}

// Yield gives this side's guest up, with the reason: its vCPUs or its disk have
// failed, and the other side is to go on with its own. The session ends as if
// the link had broken, but this side asks nobody: its guest is paused, what it
// holds is dropped, and Run returns the reason. Cancelling the context of Run
// says the opposite, that the primary's guest runs on. It may be called from any
// goroutine at any time; an order that was accepted before is withdrawn, unless
// its takeover has begun.
func (s *session) Yield(cause error) {
	s.mu.Lock()
	if !s.yielded() {
		close(s.yields)
		s.asking.overtake(true)
	}
	s.mu.Unlock()
	s.Lost(cause)
}

// cut closes the link, and with it the connection of the disks to the other side: a vCPU
// that waits for an answer there could not be paused.
func (s *session) cut() {
	s.link.Close()
	s.disks.Cut()
}
