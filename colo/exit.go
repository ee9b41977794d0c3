package colo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
)

// undo releases something that a step has begun and that holds the guest, its output
// or its writes. A step records it before it begins, so that release, which every way
// out of Run calls, finds all of them.
type undo struct {
	what string
	// goOn is called if the guest goes on at this side, stay if it does not.
	// Either may be nil: there is nothing to do.
	goOn, stay func(ctx context.Context) error
}

// hold records an undo, which release calls. A second one of the same name is
// not recorded.
func (s *session) hold(u undo) {
	for _, b := range s.begun {
		if b.what == u.what {
			return
		}
	}
	s.begun = append(s.begun, u)
}

// release calls the recorded undos, the last first, and forgets them. It
// goes on after a failure and joins the errors.
func (s *session) release(ctx context.Context, goOn bool) error {
	var errs []error
	for i := len(s.begun) - 1; i >= 0; i-- {
		u := s.begun[i]
		fn := u.stay
		if goOn {
			fn = u.goOn
		}
		if fn == nil {
			continue
		}
		if err := fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
	s.begun = nil
	return errors.Join(errs...)
}

// holdDisks records the undo of the disks. A step calls it before it makes the disks
// hold writes or keep account of them.
func (s *session) holdDisks() {
	if len(s.disks) == 0 {
		return
	}
	stop := func(failover bool) func(context.Context) error {
		return func(ctx context.Context) error {
			err := s.disks.Stop(ctx, failover)
			if errors.Is(err, replication.ErrNotRunning) {
				return nil // the start did not get that far
			}
			return err
		}
	}
	s.hold(undo{what: "disks", goOn: stop(true), stay: stop(false)})
}

// drop returns an undo that tells a network which is a Dropper that this side does not go on.
func drop(net any) func(context.Context) error {
	d, ok := net.(Dropper)
	if !ok {
		return nil
	}
	return func(context.Context) error { return d.Drop() }
}

// parting says how a session ends, as far as the goroutine in Run knows when it
// calls end.
type parting struct {
	cause error
	sure  bool   // the other side certainly does not run the guest: this one goes on, and asks nobody
	stay  bool   // this side does not go on, and has said so to the other
	drop  func() // drops what was staged and not committed; nil: nothing
}

// end is the only exit of Run once both sides have a guest: it pauses the guest, says
// why the session ends, settles who goes on, releases everything, and lets the guest go
// on or not. If the link broke, it tells the peer before it asks the arbiter; if this
// side has decided to leave a peer that may be well, it asks the arbiter first. A peer that has handed its
// guest over, which stands still until this side runs it, is told after that, or soon.
func (s *session) end(ctx context.Context, p parting) error {
	hold := context.WithoutCancel(ctx)
	s.due, s.patient, s.hosts = time.Time{}, s.patience(), 0
	s.link.until(time.Time{})
	s.heed()
	s.disks.Cut()
	first := s.arbiter != nil && !p.sure && !p.stay && (s.asked() || errors.Is(p.cause, errEnd) || errors.Is(p.cause, ErrStalled))
	handed := s.wasHanded() // once: what comes later comes too late
	switch {
	case handed:
		defer s.closeSoon()()
	case !first:
		s.link.Close()
	}
	cause := p.cause
	// The guest stands still until it is settled whether it may run here and
	// nothing holds its writes any more.
	stuck := s.pauseAtEnd(hold, p)
	cause = withStuck(cause, stuck)
	if p.drop != nil && s.machine.Status() != failover.Torn {
		p.drop()
	}
	s.sayExit(ctx, cause)

	var err error
	switch {
	case s.machine.Status() == failover.Torn:
		if !errors.Is(cause, s.tornBy) { // the session was to end anyway, and that has gone before
			cause = fmt.Errorf("%w; %w", s.tornBy, cause)
		}
		err = fmt.Errorf("%w: %w", failover.ErrTorn, cause)
		s.events.Publish(event.GuestTorn{Mode: s.mode, Epoch: s.epoch, Error: cause.Error()})
	case p.stay:
		err = cause
	case p.sure:
		s.settleAlone()
	default:
		err = s.settle(ctx, cause)
	}
	if !handed {
		s.link.Close()
	}
	if err != nil {
		return s.stay(hold, err)
	}
	err = s.goOn(hold, stuck)
	if handed { // the peer hears first that the guest runs here, and ends the session
		s.link.allow()
		s.link.linger(HandedTime)
	}
	return err
}

// closeSoon closes the link after HandedTime, or when the function that it returns is called, which is
// called in any case.
func (s *session) closeSoon() (now func()) {
	closed := make(chan struct{})
	soon := time.AfterFunc(HandedTime, func() { // joined below
		defer close(closed)
		s.link.Close()
	})
	return func() {
		s.link.Close()
		if !soon.Stop() {
			<-closed
		}
	}
}

// A guest counts as waiting (see Waiter) if Waits says so twice, this long apart, while
// Pause has not returned.
const waitsFor = 100 * time.Millisecond

var errWaits = errors.New("it waits for what this host is not allowed yet")

// pauseAtEnd pauses the guest before it is settled whether it may run here. It gives up on a
// guest whose vCPUs wait for just that (see Waiter): Pause would not return before its
// context ends.
func (s *session) pauseAtEnd(ctx context.Context, p parting) error {
	w, ok := s.vm.(Waiter)
	if !ok || s.paused || s.arbiter == nil || p.sure || p.stay {
		return s.pause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	watch := time.AfterFunc(waitsFor, func() { // a guest that is paused soon waits for no goroutine; joined below
		defer close(watched)
		for waited := w.Waits(); ; {
			timer := time.NewTimer(waitsFor)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			was := waited
			if waited = w.Waits(); was && waited {
				cancel(errWaits)
				return
			}
		}
	})
	err := s.pause(ctx)
	if errors.Is(context.Cause(ctx), errWaits) && err != nil {
		err = fmt.Errorf("pause: %w: %w", errWaits, err)
	}
	cancel(nil)
	if !watch.Stop() {
		<-watched
	}
	return err
}

// withStuck returns the cause of a session's end with the error of the pause after it, if there is one: a guest
// that could not be paused for a checkpoint usually cannot be paused at the end either, and that is told once.
func withStuck(cause, stuck error) error {
	if stuck == nil {
		return cause
	}
	if cause != nil && strings.Contains(cause.Error(), stuck.Error()) {
		return &twiceError{cause, stuck}
	}
	return errors.Join(cause, stuck)
}

// A twiceError is an error and one after it that reads alike. It reads as the first, and is both.
type twiceError struct{ first, again error }

func (e *twiceError) Error() string   { return e.first.Error() }
func (e *twiceError) Unwrap() []error { return []error{e.first, e.again} }

// sayExit publishes COLO_EXIT. Whoever has ended the context of Run has asked for the end.
func (s *session) sayExit(ctx context.Context, cause error) {
	exit := event.COLOExit{Mode: s.mode, Reason: event.ExitError}
	expected := s.expected()
	left := ctx.Err() != nil && errors.Is(cause, ctx.Err())
	if s.asked() || errors.Is(cause, errEnd) || left || expected != nil {
		exit.Reason = event.ExitRequest
	} else {
		exit.Error = cause.Error()
	}
	s.mu.Lock()
	s.info.Mode, s.info.Reason = event.ModeNone, exit.Reason
	s.mu.Unlock()
	if lost := s.reported(); lost != nil && errors.Is(cause, lost) && !s.yielded() && (expected == nil || !errors.Is(lost, expected)) {
		s.events.Publish(event.HeartbeatLost{Mode: s.mode, Epoch: s.committed(), Error: lost.Error()})
	}
	s.events.Publish(exit)
}

// reported returns the reason that the caller of Lost gave, nil if Lost was not
// called.
func (s *session) reported() error {
	select {
	case <-s.lost:
		return s.lostErr
	default:
		return nil
	}
}

// settleAlone records that the other side does not run the guest, so that this one
// goes on, whatever was ordered.
func (s *session) settleAlone() {
	s.mu.Lock()
	s.settled = true
	ordered := s.asked()
	if !ordered {
		s.ended = true
	}
	s.mu.Unlock()
	if ordered {
		<-s.quit
	}
}

// goOn ends the session on a side whose guest goes on. Nothing interrupts it.
func (s *session) goOn(ctx context.Context, stuck error) error {
	s.mu.Lock()
	s.settled = true
	s.mu.Unlock()
	s.op = "take over"
	s.setWhere(StateTakingOver)
	if s.step != nil {
		s.step(s.op, s.epoch)
	}
	var errs []error
	if stuck != nil && s.mode == event.ModeSecondary {
		// The guest must stand still before its disk is put into the state that it has
		// written.
		if err := s.pause(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if err := s.release(ctx, true); err != nil {
		errs = append(errs, err)
	}
	if err := s.resumeAtLast(ctx); err != nil {
		return s.at(errors.Join(append(errs, err)...))
	}
	if s.machine.Status() == failover.Active {
		if err := s.machine.Complete(); err != nil {
			errs = append(errs, err)
		}
	}
	s.mu.Lock()
	s.info.TookOver = s.machine.Status() == failover.Completed
	s.where = StateAlone
	s.mu.Unlock()
	s.events.Publish(event.Migration{Status: "completed"})
	if s.machine.Status() == failover.Completed {
		s.events.Publish(event.FailoverDone{Mode: s.mode, Epoch: s.committed(), Status: s.machine.Status().String()})
	}
	if len(errs) > 0 {
		return s.at(errors.Join(append([]error{ErrDegraded}, errs...)...))
	}
	return nil
}

// stay ends the session on a side whose guest does not go on: the guest stands still,
// what it held is dropped, and nothing waits for that output any longer.
func (s *session) stay(ctx context.Context, err error) error {
	if stuck := s.pauseAtLast(ctx); stuck != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", ErrNotPaused, stuck))
	}
	if e := s.release(ctx, false); e != nil {
		err = errors.Join(err, e)
	}
	s.setWhere(StateStopped)
	return err
}

// How often, and after how long each time, a Pause or a Resume that failed at
// the end of a session is called again.
const (
	tries    = 3
	tryAgain = 100 * time.Millisecond
)

func (s *session) pauseAtLast(ctx context.Context) error { return again(ctx, s.pause) }
func (s *session) resumeAtLast(ctx context.Context) error {
	if err := again(ctx, s.resume); err != nil {
		return fmt.Errorf("%w: %w", ErrNotResumed, err)
	}
	return nil
}

func again(ctx context.Context, call func(context.Context) error) (err error) {
	for i := range tries {
		if i > 0 {
			time.Sleep(tryAgain)
		}
		if err = call(ctx); err == nil {
			return nil
		}
	}
	return err
}
