package failovertest

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

func TestTheStoreInMemoryIsAStore(t *testing.T) {
	TestStore(t, func(t *testing.T) Stores {
		s := new(Store)
		return Stores{A: s, B: s}
	})
}

// ofGeneration is a store that compares the generation alone.
type ofGeneration struct{ *Store }

func (s ofGeneration) Swap(ctx context.Context, old, next failover.Record) (bool, error) {
	now, err := s.Load(ctx)
	if err != nil || now.Generation != old.Generation {
		return false, err
	}
	return s.Store.Swap(ctx, now, next)
}

// cached is a store whose answers are as old as a cache is.
type cached struct {
	*Store
	read *time.Time
	have *failover.Record
}

func (s cached) Load(ctx context.Context) (failover.Record, error) {
	if time.Since(*s.read) < 50*time.Millisecond {
		return *s.have, nil
	}
	r, err := s.Store.Load(ctx)
	*s.read, *s.have = time.Now(), r
	return r, err
}

// eager is a store that does not wait for a change.
type eager struct{ *Store }

func (s eager) Changed(ctx context.Context, _ failover.Record) (failover.Record, error) {
	return s.Load(ctx)
}

// heedless is a store that waits for a change after its context has ended.
type heedless struct{ *Store }

func (s heedless) Changed(ctx context.Context, seen failover.Record) (failover.Record, error) {
	return s.Store.Changed(context.WithoutCancel(ctx), seen)
}

func TestABrokenStoreIsFound(t *testing.T) {
	for _, c := range []struct {
		name string
		fn   func(*stores)
		wrap func(*Store) failover.Store
		want string // "": nothing is wrong
	}{
		{"that compares the generation alone", (*stores).otherRecords, func(s *Store) failover.Store { return ofGeneration{s} }, "swap from the record before the last renewal: true"},
		{"that answers out of a cache", (*stores).loads, func(s *Store) failover.Store { return cached{s, new(time.Time), new(failover.Record)} }, "right after the other host's swap"},
		{"that does not wait", (*stores).waits, func(s *Store) failover.Store { return eager{s} }, "changed returned the record that was seen"},
		{"that waits for ever", (*stores).waits, func(s *Store) failover.Store { return heedless{s} }, "did not return when its context ended"},
		{"but not a right one", (*stores).otherRecords, func(s *Store) failover.Store { return s }, ""},
		{"but not one that ends its waiting", (*stores).waits, func(s *Store) failover.Store { return s }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := new(Store)
				r := &recorder{TB: t}
				done := make(chan struct{})
				go func() {
					defer close(done)
					checkStore(r, c.fn, new(atomic.Bool), Stores{A: c.wrap(s), B: c.wrap(s)})
				}()
				<-done
				if said := strings.Join(r.said, "; "); c.want == "" && said != "" || !strings.Contains(said, c.want) {
					t.Errorf("said %q, want %q", said, c.want)
				}
			})
		})
	}
}
