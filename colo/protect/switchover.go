package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// Switchover changes the sides without loss: the guest stands still, its last
// checkpoint is made, the arbiter is told, and the other host runs it; this one
// follows from then on. It returns nil when the other host has said that this is so,
// and only then. If anything fails on the way, the guest runs on where the arbiter
// says, which is here unless the other host has it; the error says what it was, and
// that this host does not run the guest if it does not. Another host that is told to go on,
// and does not hear it, is waited for as long as twice PeerTimeout: until it has heard that, and
// until it has said that it runs the guest. The arbiter and the output that is on its way out are
// waited for as long as PeerTimeout, each for itself; a checkpoint may take its CheckpointTimeout,
// and ctx bounds it all up to the word that the other host is to go on. Where ctx ends before this
// host begins to give up its grant, the guest runs on here, in the same session, and the pair stays
// protected; later the session ends. It is the same where the arbiter does not answer the other host, or is
// another one there: that host could not be granted the guest, which would stand still. This host need not reach
// the arbiter, unless it holds the guest by an operator's word of which that has not heard, or the other host's arbiter does not
// heed failover.Claim.From. Where this host then has to ask who goes on (Asking), and is not answered, Switchover
// returns PeerTimeout after the end of ctx: the error is ctx's too, and what becomes of the guest shows
// in the state. A host that dies in the moment between the arbiter's grant and its first output takes
// the guest with it, as a lone host does: nobody knows what it said, and Switchover returns an error.
// Query reports the downtime.
//
// A person starts such a guest anew: on that host with Start, since its disks are of the
// generation that was granted. If that host is gone, or died before it had recorded
// that, the disks of the one that gave the guest away are those of the last checkpoint,
// but of the generation before, and start nothing until the person has recorded the
// generation of the arbiter's record on each (replication.Metadata.Hold). Where disks
// do not know their generation, it is given as Config.Held.
func (j *Job) Switchover(ctx context.Context) error {
	return j.change(ctx, doSwitchover)
}

// Migrate moves the guest to the other host as Switchover does, and ends the
// protection: Run returns nil here, with the guest paused, and this host can be
// switched off. There the guest is paused in the sense of Pause, until Resume seeks a
// secondary for it again. If anything fails on the way the guest runs on here, and is
// protected again; if the other host has it, but could not say so, this one waits for
// a primary, and Migrate returns an error.
func (j *Job) Migrate(ctx context.Context) error {
	return j.change(ctx, doMigrate)
}

// change gives the guest to the other host, by one of two verbs.
func (j *Job) change(ctx context.Context, verb input) error {
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := j.obey(verb, func(s *session) (string, error) {
		s.mu.Lock()
		s.migrates = verb == doMigrate
		s.mu.Unlock()
		return "to " + s.peer.host, nil
	})
	if err != nil {
		return err
	}
	err = j.makeReady(ctx, s)
	var epoch uint64
	if err == nil {
		epoch, err = j.sendLast(ctx, s)
	}
	if err != nil && (ctx.Err() != nil || errors.Is(err, errNoArbiter) || errors.Is(err, errElsewhere)) && j.callOff(s, verb, err) {
		return fmt.Errorf("protect: %v: the guest runs on here: %w", verb, err)
	}
	if err == nil {
		err = j.handOver(ctx, s, epoch)
	}
	if err != nil {
		s.fail(err)
		s.setPurpose(noPurpose)
		s.colo.Expect(nil)
		s.colo.Lost(err) // back to where it was
	} else {
		j.awaitHearing(s)
	}
	state, left := j.settled(ctx, s)
	j.mu.Lock()
	moved := s.handed
	j.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case moved:
		return nil
	case left != nil:
		s.failure = errors.Join(s.failure, left)
	case s.failure == nil:
		s.failure = errMoved
	}
	where := "the guest runs on here"
	if !state.runs() {
		where = "this host is " + state.String()
	}
	return fmt.Errorf("protect: %v: %s: %w", verb, where, s.failure)
}

// settled waits until a session has ended and what became of it is the job's state, which it
// returns. When ctx has ended, it waits no longer than PeerTimeout while this host has to ask who
// goes on, for which there is no bound: an operator may take hours, and an arbiter may not be
// reached. The error is ctx's then.
func (j *Job) settled(ctx context.Context, s *session) (State, error) {
	var patience <-chan time.Time
	for {
		j.mu.Lock()
		state, changed, ended := j.m.state, j.changed, j.current != s
		j.mu.Unlock()
		done := ctx.Done()
		switch {
		case ended || state == Concluded:
			return state, nil
		case state != Asking:
			done, patience = nil, nil
		case patience != nil:
			done = nil
		}
		select {
		case <-changed:
		case <-done:
			patience = time.After(j.cfg.PeerTimeout)
		case <-patience:
			return state, context.Cause(ctx)
		}
	}
}

// errNoArbiter calls a switchover off: a pair in step goes on without its arbiter, and a switchover does not.
var errNoArbiter = errors.New("the arbiter does not answer")

// makeReady does what a switchover begins with: the guest runs, and the other side knows nothing of
// the switchover.
func (j *Job) makeReady(ctx context.Context, s *session) error {
	deaf := false
	s.peer.get(func() { deaf = s.peer.mute || s.peer.gone })
	if deaf { // before the guest stands still for an order that nobody hears
		return fmt.Errorf("the control connection with %s is silent, or has ended", s.peer.host)
	}
	err := bounded(ctx, j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.tellArbiter(ctx, s.peer.generation) // while the guest runs: nothing else can be released
	})
	switch {
	case err != nil && !errors.Is(err, failover.ErrRefused):
		return fmt.Errorf("%w: %w", errNoArbiter, err)
	case err != nil:
		return err
	case s.peer.heedsFrom && j.manual == nil: // the other host asks, and this one need not
		if err := bounded(ctx, j.cfg.PeerTimeout, func(ctx context.Context) error { return j.answersThere(ctx, s) }); err != nil {
			return err
		}
	case j.asked.away.Load(): // the guest would stand still until it is back
		return errNoArbiter
	}
	return j.commitsFirst(ctx, s)
}

// sendLast does the primary's part of a switchover after makeReady, for as long as it can be called off: the
// guest stands still, and the other side has all of it. It returns the checkpoint that is the last.
func (j *Job) sendLast(ctx context.Context, s *session) (epoch uint64, err error) {
	if !compares(j.cfg.Network) {
		s.peer.say(note{Say: sayLast}) // where it is not heard in time the other side pauses its guest once more
	}
	// The guest is left standing by the checkpoint that has sent most of its memory before its
	// pause, so that checkpoint has its last state. It is the one after the last that is
	// committed when its pause ends.
	s.converge(func(stands func()) {
		j.keep(func() { stands(); j.wake() }) // otherwise the switchover is over already, as is said below
	})
	// The checkpoint under way, if there is one, and the last one end the session if they take
	// too long.
	if err := bounded(ctx, 2*j.cfg.CheckpointTimeout+j.cfg.PeerTimeout, func(ctx context.Context) error {
		if err := j.switching(ctx, func() bool { return s.lastOne() > 0 }); err != nil {
			return err
		}
		if compares(j.cfg.Network) {
			s.peer.say(note{Say: sayLast, Seq: s.lastOne()}) // nobody compares any more what its guest says
		}
		return j.switching(ctx, func() bool {
			// The other side commits the checkpoint as soon as it has all of it, while this one
			// does the rest of its part.
			s.mu.Lock()
			defer s.mu.Unlock()
			epoch = max(s.epoch, s.received)
			return s.last > 0 && epoch >= s.last
		})
	}); err != nil {
		return 0, err
	}
	// What this host has let go is out before the other may say anything.
	if err := bounded(ctx, j.cfg.PeerTimeout, nets(j.cfg.Network).Drain); err != nil {
		return 0, err
	}
	if ctx.Err() != nil { // from here on nobody can say any more that the guest is this host's
		return 0, context.Cause(ctx)
	}
	return epoch, nil
}

// handOver does the primary's part of a switchover after sendLast, up to the note that tells the
// other side to go on.
func (j *Job) handOver(ctx context.Context, s *session, epoch uint64) error {
	if !s.colo.Expect(errHandingOver) { // its connection may break before the other side's word is here
		return fmt.Errorf("%s does not follow any more", s.peer.host) // and the guest goes on here without a question
	}
	from, err := j.giveUp(ctx, s, epoch)
	if err != nil {
		return err
	}
	s.setPurpose(toHandOver)
	return s.peer.say(note{Say: sayGo, Seq: epoch, Migrate: s.migration(), From: from})
}

// giveUp gives the guest up for the secondary. Where the secondary's arbiter heeds failover.Claim.From, this host shuts its
// gate for good and asks nobody, since the guest stands still: it returns the token from which the
// secondary claims the guest. Otherwise it releases the guest.
func (j *Job) giveUp(ctx context.Context, s *session, epoch uint64) (from string, err error) {
	if s.peer.heedsFrom && j.manual == nil {
		return j.keeper.Yield(s.peer.generation)
	}
	return "", bounded(ctx, j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.keeper.ReleaseGeneration(ctx, s.peer.generation, fmt.Sprintf("handed to %s at checkpoint %d", s.peer.host, epoch))
	})
}

// commitsFirst waits for a checkpoint right before the last one. With that the other side commits
// what the guest here has written up to then, while this one runs. Otherwise it would commit all
// that was written since the checkpoint before in the last one, in which the guest stands still.
// A guest that stands still in each checkpoint until the other side has it gains nothing by one
// more.
func (j *Job) commitsFirst(ctx context.Context, s *session) error {
	if j.cfg.LateResume {
		return nil
	}
	before, _ := s.committed()
	s.primary.RequestCheckpoint(event.CauseRequest)
	return bounded(ctx, 2*j.cfg.CheckpointTimeout+j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.switching(ctx, func() bool {
			epoch, _ := s.committed()
			return epoch > before
		})
	})
}

// bounded calls f with a context that ends after limit: each step of a switchover has its own
// time, so that several slow ones are not taken for one that does not end.
func bounded(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// awaitHearing waits for the end of a session whose secondary has been told to go on, which
// ends it as soon as it hears that. One that does not hear it, though its heartbeat and the
// session's connection are well, must not leave the guest standing for ever: who goes on is
// then settled as where the link is lost.
func (j *Job) awaitHearing(s *session) {
	ctx, cancel := context.WithTimeout(context.Background(), j.cfg.PeerTimeout)
	defer cancel()
	if _, err := j.over(ctx, s); err != nil {
		s.colo.Lost(fmt.Errorf("%w: %s has not answered for %v", errHandingOver, s.peer.host, j.cfg.PeerTimeout))
	}
}

// converge asks for the last checkpoint. Up to then the progress of the session is that of its
// synchronisation.
//
// ready is called right before the pause of that checkpoint, with what is to be called when the guest is
// left standing. Both do nothing once the switchover has been called off: a checkpoint that comes
// later, maybe in another switchover of the same session, is not this one's last.
func (s *session) converge(ready func(stands func())) {
	s.mu.Lock()
	defer s.mu.Unlock()
	turn := s.calledOff
	s.primary.Converge(func() {
		if s.isTurn(turn) {
			ready(func() { s.stands(turn) })
		}
	})
	s.rounds = true
}

// isTurn reports whether no switchover of the session has been called off since so many had been.
func (s *session) isTurn(turn int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calledOff == turn
}

// converges reports whether the last checkpoint has been asked for.
func (s *session) converges() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rounds
}

// stands is called when the guest of a primary is left standing.
func (s *session) stands(turn int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 && s.calledOff == turn {
		s.last = s.epoch + 1
	}
}

// lastOne returns which checkpoint of a switchover is the last; 0: the guest does not stand still for it yet.
func (s *session) lastOne() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// keep has the guest left standing by the next checkpoint, unless the switchover is
// over already: the session may have broken since it began, and its guest is not to
// stand still in the next one.
func (j *Job) keep(held func()) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.m.state != SwitchingOver {
		return &StateError{Verb: doSwitchover.String(), State: j.m.state}
	}
	j.vm.keep(held)
	return nil
}

// switching waits for something while the switchover is under way.
func (j *Job) switching(ctx context.Context, done func() bool) error {
	for {
		j.mu.Lock()
		state, changed := j.m.state, j.changed
		j.mu.Unlock()
		if state != SwitchingOver {
			return &StateError{Verb: doSwitchover.String(), State: state}
		}
		if done() {
			return nil
		}
		select {
		case <-changed: // a checkpoint is committed, or the state is another
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// handedOver waits for the other side's word that it runs the guest. Without one
// it is for the arbiter to say who does.
func (j *Job) handedOver(ctx context.Context, s *session) bool {
	ctx, cancel := context.WithTimeout(ctx, j.cfg.PeerTimeout)
	defer cancel()
	runs := false
	var heard time.Time
	s.peer.await(ctx, func() bool {
		runs, heard = s.peer.verdict == sayRuns, s.peer.decided
		return s.peer.verdict != "" || s.peer.gone
	})
	if runs {
		since := j.vm.standing()
		j.mu.Lock()
		j.stats.Switchovers++
		j.stats.Downtime = heard.Sub(since)
		j.mu.Unlock()
	} else {
		why := errors.New("the other side was lost")
		s.peer.get(func() {
			if s.peer.verdict != "" {
				why = fmt.Errorf("%s cannot: %s", s.peer.host, s.peer.reason)
			}
		})
		j.note(why)
		s.fail(why)
	}
	return runs
}
