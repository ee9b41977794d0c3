package protect

import (
	"sync"

	"github.com/gocolo/lockstep/event"
)

// told has the changes of state of which nobody has been told yet, in their order. Several
// goroutines change a job's state, and one of them may be slow to tell of it. So one that finds
// another one telling leaves its change to that one, and nobody hears of a state before the one
// that it followed. It is guarded by the job's mu.
type told struct {
	queue []change
	busy  bool
	ended sync.Cond // busy has become false; its L is the job's mu
}

// change is one change of state.
type change struct {
	to State
	e  event.JobStatusChange
}

// tellAll tells of what is in the queue, unless somebody does so already: another goroutine, or
// one that is further up on this stack.
func (j *Job) tellAll() {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := &j.told
	if t.busy {
		return
	}
	t.busy = true
	for len(t.queue) > 0 {
		c := t.queue[0]
		t.queue = t.queue[1:]
		j.mu.Unlock()
		j.cfg.publish(c.e)
		j.logState(c.to, c.e)
		j.mu.Lock()
	}
	t.busy = false
	t.ended.Broadcast()
}

// allTold returns when nobody is being told of a change of state.
func (j *Job) allTold() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.told.busy {
		j.told.ended.Wait()
	}
}
