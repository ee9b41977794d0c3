package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A session is one session of package colo with what belongs to it. One follows
// the other for as long as the job runs.
type session struct {
	peer      *peer
	colo      coloSession
	primary   *colo.Primary   // nil: this host is the secondary
	secondary *colo.Secondary // nil: it is the primary
	cache     *ram.Cache      // on a secondary; for the goroutine in colo's Run alone
	base      *base           // on a primary; for the goroutine in colo's Run alone

	unharmed bool // on a primary: its synchronisation failed while the guest ran; for the goroutine of the job's Run alone

	wire *counted
	over context.Context // ends with the job

	promises promises

	mu        sync.Mutex
	purpose   purpose
	migrates  bool                        // the switchover is a Migrate: the host that gives the guest away ends, the one that takes it protects it when told to
	failure   error                       // why a switchover did not come about
	epoch     uint64                      // the last one committed
	whole     bool                        // a checkpoint was committed, so that epoch counts
	rounds    bool                        // on a primary: the last checkpoint before its guest is handed over was asked for
	last      uint64                      // on a primary: the checkpoint whose pause its guest does not leave any more; 0: none
	received  uint64                      // on a primary: that one, when the secondary has all of it; 0: not yet
	calledOff int                         // on a primary: how many of its switchovers were called off
	early     *note                       // on a secondary: it is to go on as soon as it has the checkpoint that is being committed
	work      func(func(context.Context)) // begins something that ends with the session; nil: that is not on
	growth    uint64                      // on a primary: how many times a disk was to become longer; of the verb alone
	grows     bool                        // on a secondary: a disk is being made longer
	regrown   int                         // on a secondary: connections of disks that have become longer
	denied    bool                        // the arbiter has refused this host the generation after the session's
	refusal   error                       // the answer by which this host does not go on; nil: there was none
	saidRuns  bool                        // on a secondary: it has told the primary that the guest, which that has handed over, runs here
	reach     uint64                      // on a primary: how often it has asked whether the arbiter answers its secondary
	reaching  bool                        // on a secondary: that is being found out
	from      string                      // on a secondary: the token of the primary, which has given the guest up for this host; set by the note that says so. "": it has not
	trusted   bool                        // on a secondary without an arbiter: the primary has handed it the guest, and that is not settled yet
	cause     error                       // why the session has ended; nil: it has not, or nothing is known
	loss      error                       // the same in words, where that was by no order of this host, and it was settled who goes on
	began     time.Time                   // when the synchronisation began

	handed bool // the other side has said that it runs the guest, and the state says so; guarded by the job's mu
}

// coloSession has the methods that colo.Primary and colo.Secondary share.
type coloSession interface {
	Run(context.Context) error
	Failover() error
	Fenced() error
	Lost(error)
	Expect(error) bool
	Info() colo.Info
}

// A purpose says why the operator of this host ends a session.
type purpose uint8

const (
	noPurpose  purpose = iota
	toPause            // the guest runs on here, unprotected
	toCancel           // the same, for good
	toComplete         // the guest has ended, and nobody goes on with it
	toHandOver         // the other side runs it
	toTakeHand         // the other side has released it for this one
)

// mode returns which side this host is in the session; none without one, which nil is.
func (s *session) mode() event.Mode {
	switch {
	case s == nil:
		return event.ModeNone
	case s.primary != nil:
		return event.ModePrimary
	}
	return event.ModeSecondary
}

func (s *session) setPurpose(p purpose) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.purpose = p
}

// fail adds to why a switchover did not come about.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		err = fmt.Errorf("%w, and then: %w", s.failure, err)
	}
	s.failure = err
}

func (s *session) getPurpose() purpose {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.purpose
}

func (s *session) migration() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.migrates
}

func (s *session) committed() (epoch uint64, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch, s.whole
}

// observe passes a session's events on and notes what the job must know.
func (j *Job) observe(s *session, e event.Event) {
	if c, ok := e.(event.CheckpointCommit); ok {
		s.mu.Lock()
		first := !s.whole
		s.epoch, s.whole = c.Epoch, true
		early := s.early
		s.mu.Unlock()
		j.count(c)
		if early != nil && c.Epoch >= early.Seq {
			defer j.takeHand(s, *early)
		}
		if s.primary != nil {
			s.base.confirm(s.peer.token, c.Epoch)
			if first {
				j.comesIntoStep(s)
			}
			j.keeper.SetNote(fmt.Sprintf("checkpoint %d", c.Epoch))
			j.overtaken(s)
		} else if first {
			j.hold(s.peer.generation)
		}
	}
	j.cfg.publish(e)
	switch e.(type) {
	case event.CheckpointCommit:
		j.wake()
	case event.FailoverDone:
		if s.wasHanded() {
			s.sayRuns()
		}
	}
}

// sayRuns tells the primary that has handed the guest over that it runs here: as soon as it does, since that
// host waits for it, and once.
func (s *session) sayRuns() {
	s.mu.Lock()
	said := s.saidRuns
	s.saidRuns = true
	s.mu.Unlock()
	if !said {
		s.peer.say(note{Say: sayRuns})
	}
}

// overtaken ends a session whose generation this host has left, by a verb that
// claimed the next one and was given up before it heard the answer.
func (j *Job) overtaken(s *session) {
	if j.keeper.Generation() <= s.peer.generation || j.State() != Protected {
		return
	}
	select {
	case j.verbs <- struct{}{}:
		<-j.verbs
		s.colo.Lost(errMoved)
	default: // a verb is about to end it
	}
}

// wake wakes whoever waits for a change, of something else than the state.
func (j *Job) wake() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.changed)
	j.changed = make(chan struct{})
}

// take makes s the job's session.
func (j *Job) take(s *session) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.current, j.given = s, false
	close(j.changed)
	j.changed = make(chan struct{})
}

// over waits until a session has ended and what became of it is the job's state,
// which it returns.
func (j *Job) over(ctx context.Context, s *session) (State, error) {
	for {
		j.mu.Lock()
		state, changed, ended := j.m.state, j.changed, j.current != s
		j.mu.Unlock()
		if ended || state == Concluded {
			return state, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, context.Cause(ctx)
		}
	}
}

// attend runs a session and all that belongs to it, and returns what its Run
// returned when all of it has ended.
func (j *Job) attend(ctx context.Context, s *session) error {
	// What tells the other side that this host leaves, as the end of its heartbeat does, ends
	// when the session here has been told: it would be lost otherwise, since the other side
	// closes its connections then.
	with, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	s.works(func(f func(context.Context)) { group.Go(func() { f(with) }) })
	defer func() {
		s.works(nil)
		end(nil)
		s.peer.close()
		group.Wait()
	}()
	group.Go(func() {
		beats := heartbeat.Config{
			Interval: j.cfg.Beat, Timeout: j.cfg.Lost, First: j.cfg.PeerTimeout, Logger: j.beatLog(s),
			Silent: func() {
				s.peer.set(func() { s.peer.lost, s.peer.silent = true, true })
				s.sayWhy(heartbeat.ErrLost, j.cfg.Lost)
			},
		}
		if err := s.peer.beatUntil(with, beats); err != nil {
			silent := err == heartbeat.ErrLost
			s.peer.set(func() {
				s.peer.lost, s.peer.silent = true, silent
				// What it has said before may still be on its way to be read.
				s.peer.control.SetReadDeadline(time.Now().Add(j.cfg.Lost))
			})
			if !silent {
				err = s.ordered(err)
			}
			s.colo.Lost(err)
		}
	})
	group.Go(func() {
		for deaf := false; !deaf; {
			was := s.peer.hear(func(n note) { j.heard(s, n) }, j.cfg.Term+j.cfg.Lost, func() { j.silent(s) })
			deaf = j.deaf(with, s, was)
		}
	})
	if s.primary != nil {
		group.Go(func() { s.promises.ask(with, s.peer, j.cfg.Term) })
		group.Go(func() { j.reconnect(with, s) })
	} else {
		group.Go(func() { j.watch(with, s) })
	}
	j.serveNetworks(with, s, group.Go)
	// A session that is cancelled would say goodbye, so that the other side does
	// not go on. A host that leaves wants it to.
	stop := wait.AtEnd(ctx, func() {
		s.leave(context.Cause(ctx))
		end(context.Cause(ctx))
	})
	defer stop()
	if st := j.State(); st != Synchronising && st != Following && ctx.Err() == nil {
		s.colo.Lost(errMoved) // deposed since the two agreed
	}
	err := j.awaitPromise(with, s)
	if err == nil {
		err = j.beginDisks(with, s, &group)
	}
	if err != nil {
		s.colo.Lost(err)
	}
	err = s.colo.Run(context.WithoutCancel(ctx))
	for _, d := range j.cfg.Disks {
		d.release()
	}
	if s.primary == nil && j.manual != nil && !tookOverHere(err) {
		j.keeper.Drop() // what was granted and cannot be used: as soon as the other side hears that, it goes on, and asks nobody
	}
	if tookOverHere(err) && s.wasHanded() {
		s.sayRuns()
	} else if s.wasHanded() {
		s.peer.say(note{Say: sayCannot, Reason: fmt.Sprint(err), Seq: s.unused(err)})
	} else if s.primary == nil && ctx.Err() != nil {
		s.peer.say(note{Say: sayEnd, Reason: j.cfg.Host + " leaves", Seq: s.unused(err)})
	}
	s.peer.part(j.cfg.Lost)
	return err
}

// deaf is called with a control connection that has ended. The session ends only if its other
// connections end as well. Until another control connection takes its place the guest is as safe
// as before, but this host hears no promises and no orders to switch over, which come over that
// connection alone. deaf tells the operator if that takes longer than Lost, and reports whether
// the session ended without another one.
func (j *Job) deaf(ctx context.Context, s *session, was net.Conn) bool {
	soon, cancel := context.WithTimeout(ctx, j.cfg.Lost)
	defer cancel()
	if s.peer.replaced(soon, was) == nil {
		return false
	}
	if ctx.Err() != nil || s.peer.endedWhy() != nil {
		return true
	}
	j.unheard(s, "has ended, and the others have not")
	return s.peer.replaced(ctx, was) != nil
}

// silent says that nothing is heard of the other side over the control connection, though
// that has not ended: a link may lose what belongs to one connection alone. It is heard again
// if that comes back.
func (j *Job) silent(s *session) { j.unheard(s, "is silent, and the others are not") }

// unheard says, in Query and the log, what cannot be heard while the control connection is in
// the state that the words say.
func (j *Job) unheard(s *session, words string) {
	switch j.State() {
	case Synchronising, Protected, Following:
	default:
		return // the session is over, and it is being settled who goes on
	}
	j.note(fmt.Errorf("protect: the control connection with %s %s: no promise of it counts, and a switchover is not heard", s.peer.host, words))
	j.pairLog().Warn("no promise is heard over the control connection, nor an order to switch over", "connection", words, "peer", s.peer.host)
}

// unused returns the generation that this host, a secondary, may have been granted in
// vain, since its session has ended with the guest paused; 0 if it cannot say so, as where
// the arbiter has refused it: that generation is somebody else's.
func (s *session) unused(err error) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, failover.ErrRefused) && !s.denied {
		return s.peer.generation + 1
	}
	return 0
}

// awaitPromise waits, on a primary that goes on by an operator's word, for the secondary's
// first promise. Up to that the word keeps the gate open without an end, and whoever gets a
// whole copy could claim the guest meanwhile.
func (j *Job) awaitPromise(ctx context.Context, s *session) error {
	if _, untold := j.untold(s.peer.generation); s.primary == nil || !untold {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, j.cfg.PeerTimeout)
	defer cancel()
	promised := false
	err := s.peer.await(ctx, func() bool {
		promised = s.peer.promised
		return promised || s.peer.ended || s.peer.lost || s.peer.gone
	})
	if err == nil && !promised {
		err = colo.ErrLost
	}
	return err
}

// beginDisks makes the disks of the secondary copies of those of the primary, while the
// guest runs: the session begins when they are.
func (j *Job) beginDisks(ctx context.Context, s *session, workers *sync.WaitGroup) error {
	if len(j.cfg.Disks) == 0 {
		return nil
	}
	if s.primary == nil {
		for _, d := range j.cfg.Disks {
			for _, ch := range d.channels() {
				workers.Go(func() { d.serve(ctx, s.peer.more[ch]) })
			}
		}
		return j.awaitDisks(ctx, s)
	}
	copying, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() { // joined below
		defer close(watched)
		if s.peer.await(copying, func() bool { return s.peer.ended || s.peer.lost || s.peer.gone }) == nil {
			cancel(colo.ErrLost)
		}
	}()
	defer func() { cancel(nil); <-watched }()
	copies, err := j.reachDisks(copying, s.peer.more)
	if err != nil {
		return err
	}
	for i, d := range j.cfg.Disks {
		p := d.leading()
		workers.Go(func() { p.Run(ctx) })
		if err := d.attach(copying, copies[i]); err != nil {
			for _, c := range copies[i+1:] {
				c.close()
			}
			return fmt.Errorf("disk %q: %w", d.cfg.Name, err)
		}
	}
	return s.peer.say(note{Say: sayDisks})
}

// wasHanded reports whether this host, a secondary, has been told to go on, and has not
// answered yet.
func (s *session) wasHanded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.purpose == toTakeHand || s.early != nil
}

// isEntrusted reports whether this host, a secondary without an arbiter, was handed the guest, and
// it is not settled yet that it goes on.
func (s *session) isEntrusted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trusted
}

// trust notes whether that is so.
func (s *session) trust(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trusted = on
}

// errHandingOver ends a session from the moment on in which the other side may take the guest
// over. It is not that side's word that it has, or that it cannot, which is
// errSwitchover: without one an operator has to say who goes on, where there is no arbiter.
var (
	errHandingOver = errors.New("switchover")
	errSwitchover  = fmt.Errorf("%w", errHandingOver)
)
