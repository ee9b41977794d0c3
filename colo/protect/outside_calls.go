package protect

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A job calls its arbiter and its fencer, which reach outside the process. Such a call may never
// return, and may ignore its context: a file system whose server is gone holds whoever asks it,
// and so does a program that a fencer waits for. An operator then decides by Fenced, or gives a
// verb up, and must not have to wait for the call.

// obedient is how long a call may take to return after its context has ended. What it returns
// then counts: storage that writes does not break that off, and answers soon.
const obedient = time.Second

// outside makes calls that may not return. A call that has not returned when its context has
// ended is left behind: the caller has to treat it as a request that may or may not have been
// carried out, and its later result goes to whoever takes what comes late, if anybody does. While
// calls are left behind no new call is made, so there are never more of them than were made at
// the same time. The zero value is ready.
type outside struct {
	all sync.WaitGroup // the calls that have not returned

	mu      sync.Mutex
	left    []*outsideCall // those that were left behind
	waiters int            // callers that wait for what somebody takes if it comes late
}

// An outsideCall is one call. Its fields are guarded by the mutex of its outside.
type outsideCall struct {
	returned bool
	left     bool          // its caller does not wait any more
	counts   bool          // its caller is one of the waiters
	done     chan struct{} // closed when it has returned, and what came late has been taken
}

// wait returns when every call has returned.
func (o *outside) wait() { o.all.Wait() }

// free waits until no call that was left behind is still being made.
func (o *outside) free(ctx context.Context) error {
	for {
		o.mu.Lock()
		var first *outsideCall
		if len(o.left) > 0 {
			first = o.left[0]
		}
		o.mu.Unlock()
		if first == nil {
			return nil
		}
		select {
		case <-first.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave leaves a call behind, unless it has returned. Its caller waits no longer then.
func (o *outside) leave(c *outsideCall) (left bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !c.returned {
		c.left = true
		o.left = append(o.left, c)
		o.waits(c, -1)
	}
	return c.left
}

// waits adds to how many callers wait. The caller holds mu.
func (o *outside) waits(c *outsideCall, n int) {
	if c.counts {
		o.waiters += n
	}
}

// begins notes that the caller of c waits.
func (o *outside) begins(c *outsideCall) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waits(c, 1)
}

// heard notes that the caller of c has an answer, or none because it has given up before the call.
func (o *outside) heard(c *outsideCall) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waits(c, -1)
}

// awaited reports whether anybody waits for what somebody takes if it comes late.
func (o *outside) awaited() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiters > 0
}

// returns notes that a call has returned, and reports whether it was left behind.
func (o *outside) returns(c *outsideCall) (left bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.returned = true
	return c.left
}

// ends notes that nothing comes of a call any more.
func (o *outside) ends(c *outsideCall) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left = slices.DeleteFunc(o.left, func(l *outsideCall) bool { return l == c })
	close(c.done)
}

// askOutside makes a call, and returns what that returns, or why ctx has ended if it does not return
// then. late, if it is not nil, is called with what a call that was left behind has returned without
// an error, before another call is made.
func askOutside[T any](ctx context.Context, o *outside, call func(context.Context) (T, error), late func(T)) (T, error) {
	var none T
	c := &outsideCall{done: make(chan struct{}), counts: late != nil}
	o.begins(c)
	if err := o.free(ctx); err != nil {
		o.heard(c)
		return none, err
	}
	type result struct {
		is  T
		err error
	}
	said := make(chan result, 1)
	o.all.Go(func() {
		defer o.ends(c)
		is, err := call(ctx)
		if !o.returns(c) {
			said <- result{is, err}
		} else if err == nil && late != nil {
			late(is)
		}
	})
	var r result
	select {
	case r = <-said:
		o.heard(c)
		return r.is, r.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(obedient)
	defer timer.Stop()
	select {
	case r = <-said:
	case <-timer.C:
		if o.leave(c) {
			return none, context.Cause(ctx)
		}
		r = <-said
	}
	o.heard(c)
	return r.is, r.err
}

// fenceOnce calls the Fencer once. One that takes its time is told of, since the guest stands still
// until it has returned.
func (j *Job) fenceOnce(ctx context.Context, generation uint64) error {
	slow := make(chan struct{})
	timer := time.AfterFunc(j.cfg.PeerTimeout, func() {
		defer close(slow)
		j.note(fmt.Errorf("fence: it has not returned for %v, and the guest stands still until it does", j.cfg.PeerTimeout))
	})
	_, err := askOutside(ctx, &j.fencing, func(ctx context.Context) (struct{}, error) { return struct{}{}, j.cfg.Fencer.Fence(ctx, generation) }, nil)
	if !timer.Stop() {
		<-slow
	}
	return err
}

// record does what hold does, for somebody who does not wait for disks that hang.
func (j *Job) record(ctx context.Context, generation uint64) error {
	_, err := askOutside(ctx, &j.recording, func(context.Context) (struct{}, error) {
		j.hold(generation)
		return struct{}{}, nil
	}, nil)
	return err
}

// recordWait is how long a guest that is to go on stands still for disks to record the generation that this
// host was granted, besides what a call is given to return (obedient).
const recordWait = time.Second

// recordSoon does what record does, for a guest that is to go on. Where the disks take longer than recordWait
// it goes on without, as where they cannot record anything, and it is told of in the same words: a cold
// start finds too old a generation, or is after one that the arbiter knows was this host's (wasOurs).
func (j *Job) recordSoon(ctx context.Context, generation uint64) {
	begun := time.Now()
	soon, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	if err := j.record(soon, generation); err != nil { // also if ctx has ended: the log must not lack it
		j.unrecorded(fmt.Errorf("record generation %d: the disks have not answered for %v, and the guest does not wait for them", generation, time.Since(begun).Round(time.Millisecond)))
	}
}

// allReturned returns when all calls that were left behind have.
func (j *Job) allReturned() {
	for _, o := range []*outside{&j.asking, &j.watching, &j.fencing, &j.recording} {
		o.wait()
	}
}
