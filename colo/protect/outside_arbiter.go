package protect

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/failover"
)

// An outsideArbiter is a job's arbiter whose answers are not waited for when a context has ended.
type outsideArbiter struct {
	of      failover.Arbiter
	calls   *outside
	watches *outside             // apart, since a Watch that heeds no context keeps nobody from asking
	late    func(failover.Grant) // is called with a grant that nobody waits for any more
}

var _ failover.HandoverArbiter = outsideArbiter{}

// HeedsFrom implements failover.HandoverArbiter.
func (a outsideArbiter) HeedsFrom() bool { return failover.HeedsFrom(a.of) }

func (a outsideArbiter) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	return askOutside(ctx, a.calls, func(ctx context.Context) (failover.Grant, error) { return a.of.Acquire(ctx, c) }, a.late)
}

func (a outsideArbiter) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	return askOutside(ctx, a.calls, func(ctx context.Context) (failover.Grant, error) { return a.of.Renew(ctx, g, note) }, nil)
}

func (a outsideArbiter) Release(ctx context.Context, g failover.Grant, note string) error {
	_, err := askOutside(ctx, a.calls, func(ctx context.Context) (struct{}, error) { return struct{}{}, a.of.Release(ctx, g, note) }, nil)
	return err
}

func (a outsideArbiter) Record(ctx context.Context) (failover.Record, error) {
	return askOutside(ctx, a.calls, a.of.Record, nil)
}

func (a outsideArbiter) Watch(ctx context.Context, seen failover.Record) (failover.Record, error) {
	return askOutside(ctx, a.watches, func(ctx context.Context) (failover.Record, error) { return a.of.Watch(ctx, seen) }, nil)
}

// outsideOf makes the arbiter of a Config one that keeps nobody waiting.
func (j *Job) outsideOf(a failover.Arbiter) outsideArbiter {
	return outsideArbiter{
		of: a, calls: &j.asking, watches: &j.watching,
		late: func(g failover.Grant) { j.tooLate(a, g) },
	}
}

// tooLate takes a grant that came when nobody waited for it any more, and gives it back if nobody here
// is to use it: it would keep the guest from everybody for its term. It is called while no other
// question to the arbiter is under way, and none begins before it has returned.
//
// A grant is used where the guest runs, or is about to: the keeper takes it when the generation before
// it cannot be renewed any more, or an operator's word has taken it already. So it is where the same is
// asked again, which finds that it was granted, and where that will be, to start the guest. If others
// have the guest by now the arbiter refuses to take it back, and nothing is changed.
func (j *Job) tooLate(a failover.Arbiter, g failover.Grant) {
	j.mu.Lock()
	state, claims := j.m.state, j.claims
	j.mu.Unlock()
	switch {
	case j.asking.awaited(), j.keeper.Generation() > 0:
		return
	case state == Concluded:
	case state != Waiting && state != Following, claims:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.cfg.Term)
	defer cancel()
	if err := a.Release(ctx, g, "granted to "+j.cfg.Host+" when it did not ask any more"); err != nil && !errors.Is(err, failover.ErrRefused) {
		j.note(fmt.Errorf("release generation %d, which was granted too late: %w", g.Generation, err)) // its term runs out
	}
}
