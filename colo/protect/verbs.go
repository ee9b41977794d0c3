package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// ErrNotWhole says that a verb has no guest to go on with: this host follows, and
// has not got the whole guest yet.
var ErrNotWhole = errors.New("protect: the copy here is not whole yet")

// ErrCompleted says that the guest has ended, by its own will: somebody has called
// Complete where it ran. It is the Info.LastError of a host that followed it then, and
// waits for a primary that may never come.
var ErrCompleted = errors.New("protect: the guest has ended")

// allowed returns the session of a verb that is allowed now; nil where there is
// none.
func (j *Job) allowed(verb input) (*session, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.m.allows(verb) {
		return nil, &StateError{Verb: verb.String(), State: j.m.state}
	}
	return j.current, nil
}

// turn waits for the end of another verb that takes time.
func (j *Job) turn(ctx context.Context) (done func(), err error) {
	select {
	case j.verbs <- struct{}{}:
		return func() { <-j.verbs }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Pause ends the protection for now: no checkpoints are made, the guest's output
// passes, and the secondary, if there is one, cannot take over any more. Info has the
// reason. Pause returns when that is so. The error is a *StateError, also if Run ends
// meanwhile, or says that the arbiter could not be asked in ctx's time; protection then
// goes on.
func (j *Job) Pause(ctx context.Context, reason string) error {
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return j.leave(ctx, ctx, doPause, toPause, Paused, reason)
}

// Resume ends a pause: a secondary is sought again.
func (j *Job) Resume() error {
	j.mu.Lock()
	saving := j.saving
	j.mu.Unlock()
	if saving {
		return errSaving
	}
	return j.do(doResume, "")
}

// Cancel ends the protection for good: the guest runs on here, unprotected, and what
// it says leaves. Run goes on until its context ends, or Complete: the job carries
// the networks and disks of the guest, and keeps the grant, so that no other host
// starts the guest. The other host waits for a primary, which does not come. It returns when
// that is so, with errors like those of Pause.
func (j *Job) Cancel(ctx context.Context) error {
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return j.leave(ctx, ctx, doCancel, toCancel, Cancelled, "cancelled")
}

// SetDelay changes Config.CheckpointDelay, from the present interval on. It counts on
// this host only: a host that takes over has its own. It must be positive.
func (j *Job) SetDelay(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("protect: a checkpoint delay of %v", d)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.m.allows(doSetDelay) {
		return &StateError{Verb: doSetDelay.String(), State: j.m.state}
	}
	j.delay = d
	if s := j.current; s != nil && s.primary != nil {
		s.primary.SetCheckpointDelay(d)
	}
	return nil
}

// CheckpointDelay returns what SetDelay has said last, and
// Config.CheckpointDelay until then.
func (j *Job) CheckpointDelay() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.delay
}

// Complete says that the guest has ended, by its own will: there is nothing more to
// protect, and the secondary must not go on with it. Run returns nil then. It is
// for the host where the guest runs.
func (j *Job) Complete(ctx context.Context) error {
	done, err := j.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return j.leave(ctx, ctx, doComplete, toComplete, Concluded, "the guest has ended")
}

// leave ends the session, if there is one, with the guest on this host. A session that
// ends by itself at that moment, or one that begins, does not hinder what is possible
// after it as well: leave looks again.
func (j *Job) leave(ctx, over context.Context, verb input, why purpose, to State, reason string) error {
	for {
		s, err := j.allowed(verb)
		if err != nil {
			return err
		}
		var got State
		if s == nil {
			got, err = j.enter(verb, reason)
		} else {
			got, err = j.leaveSession(ctx, over, s, verb, why, to, reason)
		}
		if err != nil || got == to {
			return err
		}
		if !got.runs() {
			return &StateError{Verb: verb.String(), State: got}
		}
	}
}

// leaveSession ends a session with the guest on this host, and returns what state came of
// that. The arbiter comes first: from its answer on, the secondary's copy is old. ctx bounds
// that, and over the wait for the session's end, which comes then in any case.
func (j *Job) leaveSession(ctx, over context.Context, s *session, verb input, why purpose, to State, reason string) (State, error) {
	if err := j.order(ctx, verb, s.peer.generation); err != nil {
		return 0, err
	}
	if st := j.State(); st == Concluded {
		return 0, &StateError{Verb: verb.String(), State: st}
	}
	s.setPurpose(why)
	s.colo.Expect(errInOrder) // the other side may close its connections before this session ends
	s.peer.set(func() { s.peer.reason = reason })
	if why == toComplete {
		j.vm.keep(func() {}) // it has nothing more to do
		if j.session() != s {
			j.vm.keep(nil) // too late: the guest runs after that session
		}
	}
	// Everybody who has to be asked was. A session that has ended meanwhile was
	// told the same by its arbiter, and what became of it shows below.
	// The other side hears it first, or the end of the connections might be faster.
	s.peer.say(note{Say: sayEnd, Verb: verb.String(), Reason: reason, Completed: why == toComplete}) // an arbiter would refuse it anyway
	s.peer.part(min(j.cfg.Lost, hearTime))
	fenced := s.colo.Fenced()
	got, err := j.over(over, s)
	if err == nil && got != to && !got.runs() {
		err = errors.Join(&StateError{Verb: verb.String(), State: got}, fenced)
	}
	return got, err
}

// Checkpoint asks for a checkpoint now, and returns at once.
func (j *Job) Checkpoint() error {
	if _, err := j.allowed(doCheckpoint); err != nil {
		return err
	}
	j.request(event.CauseRequest)
	return nil
}

// Failover claims the guest for this host: the session ends, and the arbiter is
// asked. It returns when the claim is made; Wait says what came of it. The present
// holder is preferred: on a secondary whose primary lives, Failover is refused by
// an arbiter, and Switchover on the primary is what is wanted. Where an operator is
// the arbiter, Failover is his yes, and he has made sure that the other host does
// not get one.
func (j *Job) Failover() error {
	s, err := j.goingOn(doFailover, "ordered")
	if err != nil || s == nil {
		return err
	}
	if s.primary == nil {
		// A primary that lives must not wait for a checkpoint that this host will
		// not answer, while the arbiter makes it wait.
		s.colo.Expect(errOrdered)
		s.colo.Lost(errOrdered)
		return nil
	}
	return s.colo.Failover()
}

// yes is the operator's answer, where he is the arbiter. The state may be a moment
// ahead of the question.
func (j *Job) yes() {
	if j.manual == nil || j.manual.Grant() == nil {
		return
	}
	j.inBackground(func() {
		ctx, end := j.while(context.Background(), Asking)
		defer end()
		for j.manual.Grant() != nil && wait.For(ctx, time.Millisecond) == nil {
		}
	})
}

// Fenced is an operator's word that the other host is dead, or can do nothing for
// the guest any more: this host goes on at once, and asks nobody. The arbiter is told
// as soon as it can be. Until it agrees, this host's disks are recorded as those of the
// generation before. A secondary that follows meanwhile gets nothing before it has promised
// not to claim the guest while this host acts on that; should this one die, it tells the
// arbiter of the word, and then goes on; Fenced may be called there too. If the arbiter
// turns out to have given the guest to somebody else, this host gives the guest up again:
// also where the other host is dead, but had gone on without this one before, whose copy
// is older than what the world has seen.
func (j *Job) Fenced() error {
	s, err := j.goingOn(doFenced, "the other host is fenced")
	if err != nil {
		return err
	}
	j.goOn(s)
	return nil
}

// goOn has a session go on here by an operator's word. The state says so already.
func (j *Job) goOn(s *session) {
	after := s.peer.generation
	j.vm.keep(nil) // a secondary that was told to go on may have left it standing, and nobody is asked who goes on
	j.saysAfter(s)
	j.learn(j.keeper.Fenced(after))
	j.vm.face(true)
	s.colo.Fenced() // an error is that of a session that is about to go on anyway
	j.inBackground(func() { j.confirm(after) })
}

// confirm tells the arbiter of what an operator has decided. The disks are of the
// new generation when it agrees, not before: if the word was wrong they are old.
func (j *Job) confirm(after uint64) {
	ctx, end := j.while(context.Background(), TakingOver, Alone, Synchronising, Protected, SwitchingOver, Asking, Paused, Cancelled)
	defer end()
	err := j.order(ctx, doFenced, after)
	if errors.Is(err, failover.ErrRefused) && j.takeBack(after+1) {
		j.deposed(after+1, err)
	}
}

// useful returns why there is no guest here to go on with, or nil.
func (j *Job) useful(s *session) error {
	if s == nil {
		return ErrNotWhole
	}
	if _, whole := s.committed(); !whole && s.primary == nil {
		return ErrNotWhole
	}
	return nil
}

// Switchover changes the sides without loss: the guest stands still, its last
// checkpoint is made, the arbiter is told, and the other host runs it; this one
// follows from then on. It returns nil when the other host has said that this is so,
// and only then. If anything fails on the way, the guest runs on where the arbiter
// says, which is here unless the other host has it; the error says what it was, and
// that this host does not run the guest if it does not. Another host that is told to go on,
// and does not hear it, is waited for as long as PeerTimeout. So are, each for itself, the
// arbiter and the output that is on its way out; a checkpoint may take its CheckpointTimeout,
// and ctx bounds it all up to the word that the other host is to go on. A host that dies in the moment
// between the arbiter's grant and its first output takes the guest with it, as a lone
// host does: nobody knows what it said, and Switchover returns an error. Query reports
// the downtime.
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
	s, err := j.handing(verb)
	if err != nil {
		return err
	}
	if err := j.handOver(ctx, s); err != nil {
		s.fail(err)
		s.setPurpose(noPurpose)
		s.colo.Expect(nil)
		s.colo.Lost(err) // back to where it was
	} else {
		j.awaitHearing(s)
	}
	state, _ := j.over(context.WithoutCancel(ctx), s)
	j.mu.Lock()
	moved := s.handed
	j.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case moved:
		return nil
	case s.failure == nil:
		s.failure = errMoved
	}
	where := "the guest runs on here"
	if !state.runs() {
		where = "this host is " + state.String()
	}
	return fmt.Errorf("protect: %v: %s: %w", verb, where, s.failure)
}

// handOver does the primary's part of a switchover, up to the note that tells the
// other side to go on.
func (j *Job) handOver(ctx context.Context, s *session) error {
	deaf := false
	s.peer.get(func() { deaf = s.peer.mute || s.peer.gone })
	if deaf { // before the guest stands still for an order that nobody hears
		return fmt.Errorf("the control connection with %s is silent, or has ended", s.peer.host)
	}
	if err := bounded(ctx, j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.tellArbiter(ctx, s.peer.generation) // while the guest runs: nothing else can be released
	}); err != nil {
		return err
	}
	// The guest is left standing by the checkpoint that has sent most of its memory before its
	// pause, so that checkpoint has its last state. It is the one after the last that is
	// committed when its pause ends.
	s.primary.Converge(func() {
		j.keep(s.stands) // otherwise the switchover is over already, as is said below
	})
	var epoch uint64
	// The one under way, if there is one, and that one end the session if they take too long.
	if err := bounded(ctx, 2*j.cfg.CheckpointTimeout+j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.switching(ctx, func() bool {
			// What the other side has all of it makes its guest's, while this one does the
			// rest of its part.
			s.mu.Lock()
			defer s.mu.Unlock()
			epoch = max(s.epoch, s.received)
			return s.last > 0 && epoch >= s.last
		})
	}); err != nil {
		return err
	}
	// What this host has let go is out before the other may say anything.
	if err := bounded(ctx, j.cfg.PeerTimeout, nets(j.cfg.Network).Drain); err != nil {
		return err
	}
	s.colo.Expect(errHandingOver) // its connection may break before the other side's word is here
	if err := bounded(ctx, j.cfg.PeerTimeout, func(ctx context.Context) error {
		return j.keeper.ReleaseGeneration(ctx, s.peer.generation, fmt.Sprintf("handed to %s at checkpoint %d", s.peer.host, epoch))
	}); err != nil {
		return err
	}
	s.setPurpose(toHandOver)
	return s.peer.say(note{Say: sayGo, Seq: epoch, Migrate: s.migration()})
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

// stands is called when the guest of a primary is left standing.
func (s *session) stands() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		s.last = s.epoch + 1
	}
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
