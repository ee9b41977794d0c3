package protect

import (
	"context"
	"slices"
	"time"

	"github.com/gocolo/lockstep/event"
)

// An activity is work that goes on while the job is in some states; its context
// ends when the job is in none of them. There may be several at a time.
type activity struct {
	in     []State
	cancel context.CancelCauseFunc
}

// State returns the present state.
func (j *Job) State() State {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.m.state
}

// Wait returns when the job is in one of the states, or concluded, and which it
// is; or when ctx ends.
func (j *Job) Wait(ctx context.Context, states ...State) (State, error) {
	for {
		j.mu.Lock()
		s, changed := j.m.state, j.changed
		j.mu.Unlock()
		if s == Concluded || slices.Contains(states, s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

// while returns a context that ends when the job is in none of these states.
func (j *Job) while(ctx context.Context, in ...State) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &activity{in, cancel}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acts[a] = struct{}{}
	if !slices.Contains(in, j.m.state) {
		cancel(errMoved)
	}
	return ctx, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.acts, a)
		cancel(nil)
	}
}

// do gives the machine an input and tells of the new state, or leaves that to whoever is telling
// already (see told).
func (j *Job) do(in input, reason string) error {
	_, err := j.enter(in, reason, nil)
	return err
}

// enter does what do does, and returns the state that the input led to, which may have changed
// since. If of is not nil, the input is about that session: if it is not the job's any more
// nothing is done, and the error is errAnother.
func (j *Job) enter(in input, reason string, of *session) (State, error) {
	j.mu.Lock()
	from := j.m.state
	var err error
	switch {
	case of != nil && j.current != of:
		err = errAnother
	case in == doFenced && j.given:
		err = &StateError{Verb: in.String(), State: from}
	default:
		err = j.m.do(in, reason)
	}
	if err != nil {
		j.mu.Unlock()
		return from, err
	}
	to := j.m.state
	if in == broke && j.manual != nil {
		// Without an arbiter the gate does not shut when a time runs out, and from now on an
		// operator may tell the other host to go on. The guest stands still, and nothing else
		// leaves either until this host is told so.
		j.keeper.Gate().Shut()
	}
	if (in == handed || in == migrated) && j.current != nil {
		j.current.handed = true
	}
	if !to.lasts() {
		j.loss = nil
	}
	if to != from {
		j.since = time.Now()
		close(j.changed)
		j.changed = make(chan struct{})
	}
	for a := range j.acts {
		if !slices.Contains(a.in, to) {
			a.cancel(errMoved)
		}
	}
	e := event.JobStatusChange{ID: j.cfg.Name, Status: event.JobStatus(to.JobStatus()), State: to.String(), Reason: reason, Generation: j.generation}
	if j.current != nil {
		e.Peer = j.current.peer.host
	}
	if to != from {
		j.told.queue = append(j.told.queue, change{to, e})
	}
	j.mu.Unlock()
	j.tellAll()
	return to, nil
}
