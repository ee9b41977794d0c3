package protect

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A job calls its arbiter and its fencer, which reach outside the process. Such a call may never
// return, and may ignore its context: a file system whose server is gone holds whoever asks it,
// and so does a program that a fencer waits for. An operator then decides by Fenced, or gives a
// verb up, and must not have to wait for the call.

// obedient is how long a call may take to return after its context has ended. What it returns
// then counts: storage that writes does not break that off, and answers soon.
const obedient = time.Second

// outside makes calls that may not return. A call that has not returned when its context has
// ended is left behind, and its later result is dropped: the caller has to treat it as a request
// that may or may not have been carried out. While calls are left behind no new call is made, so
// there are never more of them than were made at the same time. The zero value is ready.
type outside struct {
	all sync.WaitGroup // the calls that have not returned

	mu   sync.Mutex
	left []chan struct{} // each is closed when a call that was left behind has returned
}

// wait returns when every call has returned.
func (o *outside) wait() { o.all.Wait() }

// free waits until no call that was left behind is still being made.
func (o *outside) free(ctx context.Context) error {
	for {
		o.mu.Lock()
		var first chan struct{}
		if len(o.left) > 0 {
			first = o.left[0]
		}
		o.mu.Unlock()
		if first == nil {
			return nil
		}
		select {
		case <-first:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave notes that a call is left behind until it is done, which it may be by now.
func (o *outside) leave(done chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-done:
	default:
		o.left = append(o.left, done)
	}
}

// returned notes that a call is done.
func (o *outside) returned(done chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, d := range o.left {
		if d == done {
			o.left = append(o.left[:i], o.left[i+1:]...)
			break
		}
	}
	close(done)
}

// askOutside makes a call, and returns what that returns, or why ctx has ended if it does not return then.
func askOutside[T any](ctx context.Context, o *outside, call func(context.Context) (T, error)) (T, error) {
	var none T
	if err := o.free(ctx); err != nil {
		return none, err
	}
	type result struct {
		is  T
		err error
	}
	said, done := make(chan result, 1), make(chan struct{})
	o.all.Go(func() {
		defer o.returned(done)
		is, err := call(ctx)
		said <- result{is, err}
	})
	select {
	case r := <-said:
		return r.is, r.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(obedient)
	defer timer.Stop()
	select {
	case r := <-said:
		return r.is, r.err
	case <-timer.C:
		o.leave(done)
		return none, context.Cause(ctx)
	}
}

// An outsideArbiter is a job's arbiter whose answers are not waited for when a context has ended.
type outsideArbiter struct {
	of      failover.Arbiter
	calls   *outside
	watches *outside // apart, since a Watch that heeds no context keeps nobody from asking
}

var _ failover.Arbiter = outsideArbiter{}

func (a outsideArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	return askOutside(ctx, a.calls, func(ctx context.Context) (failover.Grant, error) { return a.of.Acquire(ctx, c) })
}

func (a outsideArbiter) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	return askOutside(ctx, a.calls, func(ctx context.Context) (failover.Grant, error) { return a.of.Renew(ctx, g, note) })
}

func (a outsideArbiter) Release(ctx context.Context, g failover.Grant, note string) error {
	_, err := askOutside(ctx, a.calls, func(ctx context.Context) (struct{}, error) { return struct{}{}, a.of.Release(ctx, g, note) })
	return err
}

func (a outsideArbiter) Record(ctx context.Context) (failover.Record, error) {
	return askOutside(ctx, a.calls, a.of.Record)
}

func (a outsideArbiter) Watch(ctx context.Context, seen failover.Record) (failover.Record, error) {
	return askOutside(ctx, a.watches, func(ctx context.Context) (failover.Record, error) { return a.of.Watch(ctx, seen) })
}

// fenceOnce calls the Fencer once. One that takes its time is told of, since the guest stands still
// until it has returned.
func (j *Job) fenceOnce(ctx context.Context, generation uint64) error {
	slow := make(chan struct{})
	timer := time.AfterFunc(j.cfg.PeerTimeout, func() {
		defer close(slow)
		j.note(fmt.Errorf("fence: it has not returned for %v, and the guest stands still until it does", j.cfg.PeerTimeout))
	})
	_, err := askOutside(ctx, &j.fencing, func(ctx context.Context) (struct{}, error) { return struct{}{}, j.cfg.Fencer.Fence(ctx, generation) })
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
	})
	return err
}

// allReturned returns when all calls that were left behind have.
func (j *Job) allReturned() {
	for _, o := range []*outside{&j.asking, &j.watching, &j.fencing, &j.recording} {
		o.wait()
	}
}
