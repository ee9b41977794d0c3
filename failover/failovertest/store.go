// Package failovertest is for the tests of arbiters and of what uses them: a
// store in memory that can be slow, fail, or lose its answer, and conformance
// tests for implementations of failover.Arbiter and of failover.Store. The store in
// memory may be used in a bubble of testing/synctest.
package failovertest

import (
	"context"
	"sync"

	"github.com/gocolo/lockstep/failover"
)

// Store is a failover.Store in memory: with failover.NewStoreArbiter, an arbiter
// for the hosts of one process. The zero Store has no record yet. Its methods may
// be called from any goroutine.
type Store struct {
	// Before, if set, is called before each operation, "load", "swap" or
	// "changed"; it may wait, and its error is the operation's. After is
	// called when a load or swap is done; its error takes the place of the
	// answer, which is then lost. Both are set before use.
	Before func(ctx context.Context, op string) error
	After  func(ctx context.Context, op string) error

	mu      sync.Mutex
	record  failover.Record
	changed chan struct{}
	history []failover.Record
}

var _ failover.Store = (*Store)(nil)

func call(ctx context.Context, f func(context.Context, string) error, op string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if f == nil {
		return nil
	}
	return f(ctx, op)
}

// Load implements failover.Store.
func (s *Store) Load(ctx context.Context) (failover.Record, error) {
	if err := call(ctx, s.Before, "load"); err != nil {
		return failover.Record{}, err
	}
	s.mu.Lock()
	r := s.record
	s.mu.Unlock()
	return r, call(ctx, s.After, "load")
}

// Swap implements failover.Store.
func (s *Store) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	if err := call(ctx, s.Before, "swap"); err != nil {
		return false, err
	}
	s.mu.Lock()
	ok := s.record == old
	if ok {
		s.set(next)
	}
	s.mu.Unlock()
	return ok, call(ctx, s.After, "swap")
}

func (s *Store) set(next failover.Record) {
	if s.record.Changed(next) {
		s.history = append(s.history, next)
	}
	s.record = next
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Changed implements failover.Store.
func (s *Store) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	for {
		if err := call(ctx, s.Before, "changed"); err != nil {
			return failover.Record{}, err
		}
		s.mu.Lock()
		if s.record != seen {
			defer s.mu.Unlock()
			return s.record, nil
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return failover.Record{}, context.Cause(ctx)
		}
	}
}

// History returns every record that had another generation or holder than the
// one before it, in order.
func (s *Store) History() []failover.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]failover.Record(nil), s.history...)
}
