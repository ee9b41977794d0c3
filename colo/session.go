package colo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
)

// DefaultPeerTimeout bounds every wait for the peer, and for the host's own VM,
// where the configuration says nothing.
const DefaultPeerTimeout = 10 * time.Second

// session is what the two sides have in common: the link, the guest, the
// failover machine and the one exit of Run. All of it belongs to the goroutine
// in Run but for the failover machine, the quit channel, the link's Close and
// what mu guards.
type session struct {
	mode    event.Mode
	vm      VM
	state   *vmstate.Registry
	disks   replication.Group
	events  *event.Bus
	arbiter Arbiter
	patient time.Duration
	step    func(op string, epoch uint64)

	link    *Link
	machine *failover.Machine

	quit    chan struct{} // closed when a failover is active
	lost    chan struct{} // closed by Lost
	lostErr error         // why; written before lost is closed
	once    sync.Once     // for lost

	running bool   // the guest runs, as far as this session knows
	disksUp bool   // the disks were started
	epoch   uint64 // of the checkpoint under way, or the last one
	op      string // the step under way

	mu    sync.Mutex
	info  Info
	ended bool // without a takeover: too late for a failover
}

func (s *session) init(conn io.ReadWriteCloser, mode event.Mode, timeout time.Duration) {
	s.patient = max(0, orDefault(timeout, DefaultPeerTimeout))
	s.link = NewLink(conn, s.patient)
	s.machine = new(failover.Machine)
	s.quit, s.lost = make(chan struct{}), make(chan struct{})
	s.mode = mode
	s.info = Info{Mode: mode, LastMode: mode, Reason: event.ExitNone}
}

// step is one line of a checkpoint: its name is the Op of an Error and what the
// Step hook is told.
type step struct {
	op string
	fn func(ctx context.Context) error
}

// do runs steps in order and stops at the first error, which it wraps once.
// Before each it looks whether the session is to end.
func (s *session) do(ctx context.Context, steps ...step) error {
	for _, st := range steps {
		if st.fn == nil {
			continue
		}
		s.op = st.op
		if s.step != nil {
			s.step(st.op, s.epoch)
		}
		if err := s.interrupted(ctx); err != nil {
			return s.fail(ctx, err)
		}
		if err := st.fn(ctx); err != nil {
			return s.fail(ctx, err)
		}
	}
	return nil
}

// fail adds where to why. When the link was closed on purpose the purpose is
// the reason, not the closed connection.
func (s *session) fail(ctx context.Context, err error) error {
	if e := s.interrupted(ctx); e != nil {
		err = e
	}
	return s.at(err)
}

// at adds only where.
func (s *session) at(err error) error {
	return &Error{Mode: s.mode, Epoch: s.epoch, Op: s.op, Err: err}
}

// purpose returns why the link was closed by this side, nil if it was not.
func (s *session) purpose() error {
	select {
	case <-s.quit:
		return ErrFailover
	default:
	}
	select {
	case <-s.lost:
		return s.lostErr
	default:
	}
	return nil
}

func (s *session) interrupted(ctx context.Context) error {
	if err := s.purpose(); err != nil {
		return err
	}
	return ctx.Err()
}

// Failover orders this side to go on alone: the decision has been made, by an
// operator or by whoever calls. Run then takes over and returns nil. It may be
// called from any goroutine at any time and does not wait for I/O. While a
// commit is under way it is carried out when the commit is done (relaunch).
// A second order returns failover.ErrInProgress, a torn guest failover.ErrTorn,
// and an order after the end of the session ErrEnded.
func (s *session) Failover() error {
	if err := s.order(); err != nil {
		return err
	}
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
		return ErrEnded
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

// shut is called by whoever made the failover active, once: first the reason,
// then the connection, so that COLO_EXIT always says request.
func (s *session) shut() {
	close(s.quit)
	s.link.Close()
}

// Lost tells the session that the peer is gone, with the reason, before the
// connection has noticed: what a heartbeat that ran out calls. Who goes on is
// then settled as for a broken connection. It may be called from any goroutine
// at any time.
func (s *session) Lost(cause error) {
	s.once.Do(func() {
		if cause == nil {
			cause = ErrLost
		}
		s.lostErr = cause
		close(s.lost)
		s.link.Close()
	})
}

// Status returns where the failover stands. Safe from any goroutine.
func (s *session) Status() failover.Status { return s.machine.Status() }

func (s *session) pause(ctx context.Context) error {
	if !s.running {
		return nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.vm.Pause(ctx); err != nil {
		return s.late(ctx, "pause", err)
	}
	s.running = false
	s.events.Publish(event.Stop{})
	return nil
}

func (s *session) resume(ctx context.Context) error {
	if s.running {
		return nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.vm.Resume(ctx); err != nil {
		return s.late(ctx, "resume", err)
	}
	s.running = true
	s.events.Publish(event.Resume{})
	return nil
}

// bounded gives the host as long as a peer.
func (s *session) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.patient <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.patient)
}

func (s *session) late(ctx context.Context, what string, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s after %v: %w", ErrTimeout, what, s.patient, err)
	}
	return err
}

// takeover is what differs between the sides when one goes on alone.
type takeover struct {
	abandon func()       // drop what was staged or captured and not committed
	network func() error // the Failover of this side's network
}

// end is Run's only exit once the two sides share a guest: close the link, stop
// the guest, say why, settle who goes on, and go on or not.
func (s *session) end(ctx context.Context, cause error, t takeover) error {
	s.link.Close()
	// The guest stands still until it is settled whether it may run here.
	hold := context.WithoutCancel(ctx)
	stuck := s.pause(hold)
	if stuck != nil {
		cause = errors.Join(cause, stuck)
	}
	if t.abandon != nil {
		t.abandon()
	}

	reason := event.ExitError
	exit := event.COLOExit{Mode: s.mode, Reason: event.ExitError}
	if s.asked() {
		reason, exit.Reason = event.ExitRequest, event.ExitRequest
	} else {
		exit.Error = cause.Error()
	}
	s.mu.Lock()
	s.info.Mode, s.info.Reason = event.ModeNone, reason
	s.mu.Unlock()
	s.events.Publish(exit)

	switch {
	case s.machine.Status() == failover.Torn:
		return fmt.Errorf("%w: %w", failover.ErrTorn, cause)
	case stuck != nil:
		return cause // whoever cannot stop a guest must not be asked to go on with it
	}
	if err := s.settle(ctx, cause); err != nil {
		return err
	}

	// Nothing interrupts a takeover.
	s.op = "take over"
	if s.step != nil {
		s.step(s.op, s.epoch)
	}
	var errs []error
	if s.disksUp {
		if err := s.disks.Stop(hold, true); err != nil {
			errs = append(errs, fmt.Errorf("disks: %w", err))
		}
	}
	if t.network != nil {
		if err := t.network(); err != nil {
			errs = append(errs, fmt.Errorf("network: %w", err))
		}
	}
	if err := s.resume(hold); err != nil {
		return s.at(errors.Join(append(errs, err)...))
	}
	if err := s.machine.Complete(); err != nil {
		errs = append(errs, err)
	}
	s.mu.Lock()
	s.info.TookOver = true
	s.mu.Unlock()
	s.events.Publish(event.Migration{Status: "completed"})
	s.events.Publish(event.FailoverDone{Mode: s.mode, Epoch: s.committed(), Status: s.machine.Status().String()})
	if len(errs) > 0 {
		return s.at(errors.Join(append([]error{ErrDegraded}, errs...)...))
	}
	return nil
}

// asked reports whether a failover was ordered, as opposed to a session that
// broke: it is decided when the order is given, not when a socket notices.
func (s *session) asked() bool {
	switch s.machine.Status() {
	case failover.Require, failover.Active, failover.Relaunch:
		return true
	}
	return false
}

// settle returns nil when this side is to go on.
func (s *session) settle(ctx context.Context, cause error) error {
	switch {
	case s.asked():
		<-s.quit // at once, or when Failover gets there
		return nil
	case s.arbiter == nil:
		select {
		case <-s.quit:
			return nil
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		if s.leave() {
			if errors.Is(cause, err) {
				return cause
			}
			return fmt.Errorf("%w (%w)", err, cause)
		}
		<-s.quit
		return nil
	}

	ask, cancel := context.WithCancel(ctx)
	defer cancel()
	settled := make(chan struct{})
	go func() { // an order given meanwhile ends the question; joined below
		defer close(settled)
		select {
		case <-s.quit:
			cancel()
		case <-ask.Done():
		}
	}()
	err := s.arbiter.Arbitrate(ask, Claim{Mode: s.mode, Epoch: s.committed(), Cause: cause})
	cancel()
	<-settled
	if err != nil && s.leave() {
		return fmt.Errorf("%w: %w (%w)", ErrRefused, err, cause)
	}
	// Granted: the same walk as an order.
	err = s.machine.Request()
	if errors.Is(err, failover.ErrInProgress) {
		<-s.quit // an order came first and is about to say so
		return nil
	}
	if err == nil {
		_, err = s.machine.Begin()
	}
	return err
}
