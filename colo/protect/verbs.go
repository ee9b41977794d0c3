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
// none. A session that has ended with the job leaves its state behind for a moment: whether
// the verb is allowed shows in the next one, which comes at once.
func (j *Job) allowed(verb input) (*session, error) {
	for {
		j.mu.Lock()
		s, state, changed := j.current, j.m.state, j.changed
		ok := j.m.allows(verb)
		j.mu.Unlock()
		if !ok {
			return nil, &StateError{Verb: verb.String(), State: state}
		}
		if s != nil || !state.paired() {
			return s, nil
		}
		<-changed
	}
}

// obey moves the machine by a verb, and returns the session that it is about. useful says
// why the verb is of no use there, or for which reason the state changes. Where that session
// ends and another begins in between, obey looks again.
func (j *Job) obey(verb input, useful func(*session) (reason string, err error)) (*session, error) {
	for {
		s, err := j.allowed(verb)
		if err != nil {
			return nil, err
		}
		reason, err := useful(s)
		if err != nil {
			return nil, err
		}
		if _, err = j.enter(verb, reason, s); err != errAnother {
			return s, err
		}
	}
}

// errAnother says that the session that a verb is about is over.
var errAnother = errors.New("another session, or none")

// turn waits for the end of another verb that takes time.
func (j *Job) turn(ctx context.Context) (done func(), err error) {
	if ctx.Err() != nil { // an order that nobody waits for any more ends no session
		return nil, context.Cause(ctx)
	}
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

// Cancel ends the protection for good: the guest runs on here, unprotected, and what it says
// leaves. Run goes on until its context ends, or Complete: the job carries the networks and disks
// of the guest, and keeps the grant, so that no other host starts the guest. The other host waits
// for a primary, which does not come. Cancel returns when that is so, with errors like those of
// Pause.
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
			got, err = j.enter(verb, reason, nil)
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
		j.vm.keep(func() {}) // the guest has ended, and is left standing
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
// an arbiter, and Switchover on the primary is what is wanted. The session ends all the same, since a
// secondary in a session has promised not to claim the guest; the next one begins at once, and sends
// what has changed. Where an operator is
// the arbiter, Failover is the operator's yes, and the operator has made sure that
// the other host does not get one.
func (j *Job) Failover() error {
	s, err := j.obey(doFailover, func(s *session) (string, error) {
		if err := j.useful(s); err != nil {
			return "", err
		}
		if j.State() == Asking {
			return "", errAsked
		}
		return "ordered", nil
	})
	if err == errAsked {
		j.yes()
		return nil
	}
	if err != nil {
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

// errAsked says that the arbiter is being asked already.
var errAsked = errors.New("the arbiter is being asked")

// yes gives the operator's answer, where an operator is the arbiter. The question may come a
// moment later than the state that says so; yes waits for it.
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
//
// A host with disks that outlive it can do something as soon as it is started again: its disks are
// of the generation that the arbiter knows, and it would be granted the guest. It must not be
// started before the arbiter has heard of the word, or the link between the two hosts is back.
func (j *Job) Fenced() error {
	s, err := j.obey(doFenced, func(s *session) (string, error) { return "the other host is fenced", j.useful(s) })
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
	s.peer.sayAtOnce(note{Say: sayWhy, Reason: fmt.Sprintf("an operator there has said that %s is dead, or can do nothing", s.peer.host)})
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
