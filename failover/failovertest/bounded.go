package failovertest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A bound is what the calls of a test have to return in: the context of one that is not answered within
// limit ends, and one that does not return within limit after the end of its context is left alone, with
// an error that names it. Calls after that one return an error at once.
type bound struct {
	tb    testing.TB
	limit time.Duration
	hangs *atomic.Bool // a call has not returned
}

// bounded is an arbiter whose calls return.
type bounded struct {
	on failover.Arbiter
	*bound
}

// boundedStore is a store whose calls return.
type boundedStore struct {
	on failover.Store
	*bound
}

func (s *boundedStore) Load(ctx context.Context) (failover.Record, error) {
	return within(ctx, s.bound, "Load", s.on.Load)
}

func (s *boundedStore) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	return within(ctx, s.bound, "Swap", func(ctx context.Context) (bool, error) { return s.on.Swap(ctx, old, next) })
}

func (s *boundedStore) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	return within(ctx, s.bound, "Changed", func(ctx context.Context) (failover.Record, error) { return s.on.Changed(ctx, seen) })
}

func (b *bounded) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	return b.answered(ctx, "Acquire", func(ctx context.Context) (failover.Grant, error) { return b.on.Acquire(ctx, c) })
}

func (b *bounded) HeedsFrom() bool { return failover.HeedsFrom(b.on) }

func (b *bounded) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	return b.answered(ctx, "Renew", func(ctx context.Context) (failover.Grant, error) { return b.on.Renew(ctx, g, note) })
}

func (b *bounded) Release(ctx context.Context, g failover.Grant, note string) error {
	_, err := within(ctx, b.bound, "Release", func(ctx context.Context) (struct{}, error) { return struct{}{}, b.on.Release(ctx, g, note) })
	return err
}

func (b *bounded) Record(ctx context.Context) (failover.Record, error) {
	return within(ctx, b.bound, "Record", b.on.Record)
}

func (b *bounded) Watch(ctx context.Context, seen failover.Record) (failover.Record, error) {
	return within(ctx, b.bound, "Watch", func(ctx context.Context) (failover.Record, error) { return b.on.Watch(ctx, seen) })
}

// answered makes a call that can be repeated, up to three times where the store does not answer in time, as one may on
// a busy machine: what was asked for may have happened by then.
func (b *bounded) answered(ctx context.Context, method string, call func(context.Context) (failover.Grant, error)) (g failover.Grant, err error) {
	for range 3 {
		if g, err = within(ctx, b.bound, method, call); !errors.Is(err, failover.ErrUnanswered) {
			break
		}
		b.tb.Logf("%s: %v", method, err)
	}
	return g, err
}

// within makes a call of a method, on a goroutine that the test leaves behind if the call does not
// return.
func within[T any](ctx context.Context, b *bound, method string, call func(context.Context) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	var none T
	if b.hangs.Load() {
		return none, fmt.Errorf("%s is not called, since another call has not returned", method)
	}
	asking, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	answers := make(chan answer, 1)
	go func() {
		v, err := call(asking)
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.v, a.err
	case <-asking.Done():
	}
	patience := time.NewTimer(b.limit)
	defer patience.Stop()
	select {
	case a := <-answers:
		if a.err != nil && ctx.Err() == nil {
			a.err = fmt.Errorf("%s has not answered for %v: %w", method, b.limit, a.err)
		}
		return a.v, a.err
	case <-patience.C:
	}
	b.hangs.Store(true)
	b.tb.Errorf("%s has not returned %v after the end of its context", method, b.limit)
	return none, fmt.Errorf("%s has not returned %v after the end of its context", method, b.limit)
}
