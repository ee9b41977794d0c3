package protect

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// acquire asks for the generation after one. word says that an operator wishes it, which is all
// that is needed where an operator is the arbiter. The arbiter refuses what comes after a
// generation that it has never heard of: if this host holds such a generation, by Fenced, the
// arbiter is told of it first.
func (j *Job) acquire(ctx context.Context, after uint64, word bool) (uint64, error) {
	return j.acquireFrom(ctx, after, "", word)
}

// acquireFrom does what acquire does, where from is the token of a holder that has given the guest up for this host;
// "": none has.
func (j *Job) acquireFrom(ctx context.Context, after uint64, from string, word bool) (uint64, error) {
	if err := j.tellUpTo(ctx, after); err != nil {
		if errors.Is(err, failover.ErrRefused) {
			j.takeBack(after)
		}
		return 0, err
	}
	return j.ask(ctx, after, from, word)
}

// ask does what acquireFrom does, after a generation of which the arbiter has heard.
func (j *Job) ask(ctx context.Context, after uint64, from string, word bool) (uint64, error) {
	if j.manual != nil && word {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		said := make(chan struct{})
		go func() { // says yes as soon as there is a question; joined below
			defer close(said)
			for j.manual.Grant() != nil && wait.For(ctx, time.Millisecond) == nil {
			}
		}()
		defer func() { cancel(); <-said }()
	}
	generation, err := j.keeper.AcquireFrom(ctx, after, from)
	if err == nil {
		j.hears(generation)
	}
	return generation, err
}

// order asks for the generation after one by an operator's wish, for as long as ctx
// and Run last, and records it. Run waits for it, and then gives back what it got: a
// job that has ended takes the guest from nobody. If Run ends meanwhile the error is a
// *StateError.
func (j *Job) order(ctx context.Context, verb input, after uint64) error {
	j.mu.Lock()
	life, over := j.life, &StateError{Verb: verb.String(), State: Concluded}
	if life == nil || life.Err() != nil || j.m.state == Concluded {
		j.mu.Unlock()
		return over
	}
	j.orders.Add(1)
	j.mu.Unlock()
	defer j.orders.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life, func() { cancel(errLeft) })()
	generation, err := j.acquire(ctx, after, true)
	if err == nil {
		j.learn(generation)
		err = j.record(ctx, generation)
	}
	if life.Err() != nil {
		return errors.Join(over, err)
	}
	return err
}

// learn notes a generation that this host holds or follows; they only grow.
func (j *Job) learn(generation uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.generation = max(j.generation, generation)
}

// claiming notes that the disks have been read, and whether this host is about to ask
// for the guest so as to start it.
func (j *Job) claiming(claims bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.known, j.claims = true, claims
}

// deposed is called by the keeper when another generation has begun. The gate
// is shut.
func (j *Job) deposed(generation uint64, why error) {
	j.note(why)
	switch err := j.do(deposed, why.Error()); {
	case err == nil:
		j.fenceDisks()
	case j.State() == TakingOver:
		j.inBackground(func() { j.deposedThen(generation, why) })
	}
	if s := j.session(); s != nil {
		s.colo.Lost(why)
	}
}

// deposedThen waits for the end of a takeover that is under way, which nothing breaks off, and
// then has this host give up the guest with which it has gone on, unless it holds a later
// generation by then.
func (j *Job) deposedThen(generation uint64, why error) {
	taking, end := j.while(context.Background(), TakingOver)
	defer end()
	<-taking.Done()
	if j.keeper.Generation() <= generation {
		j.deposed(generation, why)
	}
}
