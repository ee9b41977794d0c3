package failovertest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A recorder is a test that notes what is said of an arbiter, and does not fail.
type recorder struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Error(args ...any) { r.Errorf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// deaf is an arbiter that does not look at the context of a claim.
type deaf struct{ failover.Arbiter }

func (d deaf) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	return d.Arbiter.Acquire(context.WithoutCancel(ctx), c)
}

// hasty is an arbiter that refuses a renewal while another's claim waits, after a while.
type hasty struct {
	failover.Arbiter
	waiting *atomic.Int32
	after   time.Duration
}

func (h hasty) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	h.waiting.Add(1)
	defer h.waiting.Add(-1)
	return h.Arbiter.Acquire(ctx, c)
}

func (h hasty) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if h.waiting.Load() == 0 {
		return h.Arbiter.Renew(ctx, g, note)
	}
	time.Sleep(h.after)
	return failover.Grant{}, fmt.Errorf("%w: another waits", failover.ErrRefused)
}

func TestABrokenArbiterIsFound(t *testing.T) {
	const term = time.Second
	var waiting atomic.Int32
	for _, c := range []struct {
		name  string
		check func(*arbiters)
		wrap  func(failover.Arbiter) failover.Arbiter
		want  string // "": nothing is wrong
	}{
		{"that does not end a claim with its context", (*arbiters).contexts,
			func(a failover.Arbiter) failover.Arbiter { return deaf{a} }, "of 5 claims"},
		{"that refuses a holder as soon as another waits", (*arbiters).renewals,
			func(a failover.Arbiter) failover.Arbiter { return hasty{a, &waiting, 0} }, "was refused"},
		{"that keeps a holder waiting until another has its grant", (*arbiters).renewals,
			func(a failover.Arbiter) failover.Arbiter { return hasty{a, &waiting, 2 * term} }, "in 5 tries"},
		{"but not a right one, by its claims", (*arbiters).contexts, nil, ""},
		{"but not a right one, by its renewals", (*arbiters).renewals, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := new(Store)
				two := Two{A: failover.NewStoreArbiter(store), B: failover.NewStoreArbiter(store)}
				if c.wrap != nil {
					two = Two{A: c.wrap(two.A), B: c.wrap(two.B)}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*term)
				defer cancel()
				r := &recorder{TB: t}
				done := make(chan struct{})
				go func() {
					defer close(done)
					c.check(&arbiters{TB: r, Two: two, ctx: ctx, term: term})
				}()
				<-done
				said := strings.Join(r.said, "; ")
				if c.want == "" && said != "" || !strings.Contains(said, c.want) || ctx.Err() != nil {
					t.Errorf("said %q, want %q; %v", said, c.want, ctx.Err())
				}
			})
		})
	}
}

// dated is an arbiter whose grants count by the clock of the day.
type dated struct{ failover.Arbiter }

func (d dated) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	g, err := d.Arbiter.Acquire(ctx, c)
	g.Sent = g.Sent.Round(0)
	return g, err
}

func TestAnArbiterThatCountsByTheClockOfTheDayIsFound(t *testing.T) {
	for _, wrong := range []bool{true, false} {
		var on failover.Arbiter = failover.NewStoreArbiter(new(Store))
		if wrong {
			on = dated{on}
		}
		r := &recorder{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&arbiters{TB: r, ctx: t.Context(), term: time.Hour}).acquire(on, "a", 0)
		}()
		<-done
		if said := strings.Join(r.said, "; "); strings.Contains(said, "monotonic") != wrong || !wrong && said != "" {
			t.Errorf("said %q of an arbiter that is wrong: %v", said, wrong)
		}
	}
}
