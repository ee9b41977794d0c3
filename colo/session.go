package colo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
)

// session has what a Primary and a Secondary share: the link, the guest, the failover machine
// and the one exit of Run. All of it belongs to the goroutine in Run but for the failover
// machine, the channels, telling, the link's Close and interrupt, and what mu guards.
type session struct {
	mode    event.Mode
	vm      VM
	state   *vmstate.Registry
	disks   replication.Group
	events  told
	arbiter Arbiter
	stopper Stopper                       // nil: nobody measures the pauses
	holder  OutputHolder                  // nil: the network cannot say
	patient time.Duration                 // PeerTimeout; 0: no bound
	hosts   time.Duration                 // how long VM and disks may take; 0: PeerTimeout
	step    func(op string, epoch uint64) // the hook of the configuration

	link    *Link
	beside  *beside // channels for memory; nil: none
	machine *failover.Machine

	made    time.Time     // when the session was
	telling atomic.Int64  // since when an event has been under way, counted from made; notTelling: none is
	ran     atomic.Bool   // Run was called
	quit    chan struct{} // closed when a failover is active
	yields  chan struct{} // closed by Yield
	fenced  chan struct{} // closed by Fenced
	wish    chan struct{} // closed by End
	lost    chan struct{} // closed by Lost
	lostErr error         // why; written before lost is closed
	once    sync.Once     // for lost
	expects error         // what Expect was told last; nil: no end is expected
	tornBy  error         // what a commit has failed by, half way; written as the machine becomes Torn

	paused     bool          // this session's pause is in effect
	begun      []undo        // what the steps so far hold, in the order of their beginning
	epoch      uint64        // of the checkpoint under way, or the last one
	op         string        // the step under way
	due        time.Time     // when the checkpoint under way is too old; zero: never
	since      time.Time     // when it began
	stoppedFor time.Duration // the pause of stoppedOf, as the VM says
	stoppedOf  uint64        // the epoch of that pause
	heldFor    time.Duration // how long output of the checkpoint can have been held
	ours       bool          // the peer is this library: it knows the words that QEMU does not

	goodbyeTime time.Duration // how long an end that is wished for may take

	// deferring: an end that is wished for waits until the two sides can say
	// goodbye. Written by the goroutine in Run, with mu held.
	deferring bool
	detached  context.Context // the context of the steps since; nil: Run's own

	mu      sync.Mutex
	info    Info
	where   State       // what Info reports of the guest
	ended   bool        // without a takeover: too late for a failover
	settled bool        // who goes on is known: too late for an end
	offered bool        // an end was expected (Expect), so that the host may have given the guest away
	unasked bool        // this side goes on, and nobody is asked: too late to give the guest away
	ending  bool        // End was called
	heeded  bool        // the end that was wished for has begun
	giveUp  *time.Timer // ends the wait for a goodbye
	asking  question    // what the arbiter is being asked
	handed  bool        // the peer has released its guest for this side, and stands still (Handed)
}

func (s *session) init(conn io.ReadWriteCloser, mode event.Mode, timeout time.Duration) {
	s.patient = max(0, orDefault(timeout, DefaultPeerTimeout))
	s.link = NewLink(conn, s.patient)
	s.machine = new(failover.Machine)
	s.quit, s.fenced = make(chan struct{}), make(chan struct{})
	s.wish, s.lost, s.yields = make(chan struct{}), make(chan struct{}), make(chan struct{})
	s.mode = mode
	s.made = time.Now()
	s.telling.Store(notTelling)
	s.info = Info{Mode: mode, LastMode: mode, Reason: event.ExitNone}
	s.where = StateNew
}

// heartbeat says who knows whether the peer lives; nil: nobody does.
func (s *session) heartbeat(h Heartbeat) {
	if h != nil {
		s.link.conn.alive = h.Alive
	}
}

// enter begins Run, once.
func (s *session) enter() error {
	if s.ran.Swap(true) {
		return fmt.Errorf("colo: %s: Run was called before: %w", s.mode, ErrEnded)
	}
	return nil
}

// step is one line of a checkpoint: its name is the Op of an Error and what the
// Step hook is told.
type step struct {
	op string
	fn func(ctx context.Context) error
}

// do runs steps in order and stops at the first error, to which fail adds the
// step. Before each step it looks whether the session is to end.
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
		run := ctx
		if s.deferring {
			run = s.detached
		}
		err := st.fn(run)
		if err == nil && s.overdue() {
			err = ErrStalled
		}
		if err != nil {
			return s.fail(ctx, err)
		}
	}
	return nil
}

// overdue reports whether the checkpoint under way is too old.
func (s *session) overdue() bool { return !s.due.IsZero() && !time.Now().Before(s.due) }

// fail makes the error with which a step ended a *Error, which says where. If
// this side has closed or interrupted the link on purpose, that purpose takes
// the place of err; if the peer has said why it goes, what the peer said does.
func (s *session) fail(ctx context.Context, err error) error {
	broken := s.beside.broken()
	if e := s.interrupted(ctx); e != nil {
		err = e
	} else if broken != nil {
		// The broken channel has interrupted the link, so err tells nothing;
		// only what the peer has said may tell more.
		if err = s.lastWord(err); err == nil {
			err = broken
		}
	} else if errors.Is(err, errInterrupted) {
		err = s.wishedFor(ctx)
	} else if e := s.lastWord(err); e != nil {
		err = e
	}
	return s.at(err)
}

// at makes an error a *Error, which says where, and changes no reason.
func (s *session) at(err error) error {
	return &Error{Mode: s.mode, Epoch: s.epoch, Op: s.op, Err: err}
}

// lastWord reads what a primary's peer has said out of turn, and returns it as
// an error: Goodbye as a *GoodbyeError; any other word only where err says that
// the word has kept a write from beginning (ErrOutOfTurn). It returns nil if
// the peer has said nothing.
func (s *session) lastWord(err error) error {
	if s.link.conn.inlet == nil || s.link.R.Err() != nil || errors.Is(err, ErrGoodbye) {
		return nil
	}
	unread := errors.Is(err, ErrOutOfTurn)
	broken := s.link.W.Err() != nil && !errors.Is(err, ErrTimeout)
	if !unread && !broken && !s.link.unread() {
		return nil
	}
	s.link.until(time.Now().Add(lastWordTime))
	defer s.link.until(s.due)
	r := s.link.R
	at := r.Offset()
	if b, ok := r.PeekByte(); ok && b != byte(Goodbye>>24) && unread && r.Buffered() < 4 {
		return fmt.Errorf("%w: byte %#x at offset %d", ErrOutOfTurn, b, at)
	}
	got := Message(r.BE32())
	switch e := r.Err(); {
	case e == nil && got == Goodbye:
		return s.link.goodbye()
	case !unread:
		return nil
	case e != nil:
		return e
	}
	return fmt.Errorf("%w: %w", ErrOutOfTurn, &MessageError{Got: got, Want: Goodbye, Offset: at})
}

// lastWordTime is how long the rest of a word that has begun, or the end of a
// connection that cannot be written to, may take to arrive.
const lastWordTime = 200 * time.Millisecond

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

// errEnd ends a session whose method End was called.
var errEnd = fmt.Errorf("%w: End was called", ErrGoodbye)

// interrupted returns why the session is to end now, nil if it is not.
func (s *session) interrupted(ctx context.Context) error {
	if err := s.purpose(); err != nil {
		return err
	}
	if s.deferring {
		return nil
	}
	return s.wishedFor(ctx)
}

// wishedFor returns why the session is to end on purpose, nil if it is not.
func (s *session) wishedFor(ctx context.Context) error {
	select {
	case <-s.wish:
		return errEnd
	default:
		return ctx.Err()
	}
}

// wished acts on a call of End, or on the end of the context of Run. It
// interrupts the link at once; or, where the two sides can say goodbye, it
// gives them time for that, and interrupts the link when the time is over.
func (s *session) wished() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.heeded:
	case !s.deferring:
		s.link.interrupt()
	case s.giveUp == nil:
		s.giveUp = time.AfterFunc(s.goodbyeTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.heeded {
				s.link.interrupt()
			}
		})
	}
}

// heed is called when the end that was wished for begins, or can no longer be
// had. From then on the wish does not interrupt the link.
func (s *session) heed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heeded = true
	s.link.conn.strict.Store(true)
	if s.giveUp != nil {
		s.giveUp.Stop()
	}
}

// deferEnd makes calls of End wait until the two sides can say goodbye, and
// reports whether there was no such call so far.
func (s *session) deferEnd(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || ctx.Err() != nil {
		return false
	}
	s.deferring, s.detached = true, context.WithoutCancel(ctx)
	return true
}

// patience is PeerTimeout, or its default where a wait must have an end.
func (s *session) patience() time.Duration {
	if s.patient > 0 {
		return s.patient
	}
	return DefaultPeerTimeout
}

// Status returns where the failover stands. Safe from any goroutine.
func (s *session) Status() failover.Status { return s.machine.Status() }

// pause pauses the guest for this session. Others may have paused it too, see
// VM.
func (s *session) pause(ctx context.Context) error {
	if s.paused {
		return nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	s.disks.Drain()
	if s.epoch > 0 {
		s.measure(s.epoch - 1) // by now its last vCPU has been back in the guest
	}
	if err := s.vm.Pause(ctx); err != nil {
		return s.late(ctx, "pause", err)
	}
	s.paused = true
	s.events.Publish(event.Stop{})
	return nil
}

// resume takes this session's pause back.
func (s *session) resume(ctx context.Context) error {
	if !s.paused {
		return nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.vm.Resume(ctx); err != nil {
		return s.late(ctx, "resume", err)
	}
	s.paused = false
	s.events.Publish(event.Resume{})
	return nil
}

// measure asks how long the guest stood still in the last pause, which was that of an epoch.
func (s *session) measure(epoch uint64) {
	if s.stopper != nil {
		s.stoppedFor, s.stoppedOf = s.stopper.Stopped(), epoch
	}
}

// bounded returns a context for a call of the host's VM or disks: it ends when
// the checkpoint is too old, or where a checkpoint has no bound, after
// PeerTimeout.
func (s *session) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if !s.due.IsZero() {
		return context.WithDeadline(ctx, s.due)
	}
	if d := s.hostPatience(); d > 0 {
		return context.WithTimeout(ctx, d)
	}
	return context.WithCancel(ctx)
}

func (s *session) hostPatience() time.Duration { return max(s.hosts, s.patient) }

// late returns err with ErrTimeout in it if the context of a call of the host,
// which bounded made, has run out; what names the call.
func (s *session) late(ctx context.Context, what string, err error) error {
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	if s.overdue() {
		return fmt.Errorf("%w: %s: %w", ErrStalled, what, err)
	}
	return fmt.Errorf("%w: %s after %v: %w", ErrTimeout, what, s.hostPatience(), err)
}
