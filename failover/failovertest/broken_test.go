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

// impatient is an arbiter that takes a grant from its holder when it is some time old and
// another claims the guest.
type impatient struct {
	failover.Arbiter
	held *failover.Grant
	old  time.Duration
}

func (i impatient) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if i.held.Token != "" && i.held.Token != c.Token && time.Since(i.held.Sent) >= i.old {
		if err := i.Arbiter.Release(ctx, *i.held, ""); err != nil {
			return failover.Grant{}, err
		}
	}
	g, err := i.Arbiter.Acquire(ctx, c)
	if err == nil {
		*i.held = g
	}
	return g, err
}

// stale is an arbiter whose renewals count from the request before.
type stale struct{ failover.Arbiter }

func (s stale) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	_, err := s.Arbiter.Renew(ctx, g, note)
	return g, err
}

// early is an arbiter that records no renewal when more than half of a term is over. What it answers then is
// the grant that it has, or one that counts from the renewal.
type early struct {
	failover.Arbiter
	counts bool
}

func (e early) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if time.Since(g.Sent) <= g.Term/2 {
		return e.Arbiter.Renew(ctx, g, note)
	}
	if e.counts {
		g.Sent = time.Now()
	}
	return g, nil
}

// punctual is an arbiter that refuses to renew a grant whose term has run out.
type punctual struct {
	failover.Arbiter
	last time.Time // when it renewed
}

func (p *punctual) Renew(ctx context.Context, g failover.Grant, note string) (failover.Grant, error) {
	if !p.last.IsZero() && time.Since(p.last) > g.Term {
		return failover.Grant{}, fmt.Errorf("%w: too late", failover.ErrRefused)
	}
	p.last = time.Now()
	return p.Arbiter.Renew(ctx, g, note)
}

// finite is an arbiter that has a term of its own for a claim without one, or takes no such claim
// if that is zero.
type finite struct {
	failover.Arbiter
	term time.Duration
}

func (f finite) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	if c.Term != 0 {
		return f.Arbiter.Acquire(ctx, c)
	}
	if f.term == 0 {
		return failover.Grant{}, fmt.Errorf("%w: without a term", failover.ErrClaim)
	}
	c.Term = f.term
	g, err := f.Arbiter.Acquire(ctx, c)
	g.Term = 0
	return g, err
}

func TestABrokenArbiterIsFound(t *testing.T) {
	const term = time.Second
	var waiting atomic.Int32
	var held failover.Grant
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
		{"that grants a claim before the holder's term is over", (*arbiters).lateClaim,
			func(a failover.Arbiter) failover.Arbiter { return impatient{a, &held, term * 3 / 4} }, "was granted before"},
		{"whose renewals count from the request before", (*arbiters).renewalCounts,
			func(a failover.Arbiter) failover.Arbiter { return stale{a} }, "is not that of the request"},
		{"that renews nothing late in a term", (*arbiters).renewalCounts,
			func(a failover.Arbiter) failover.Arbiter { return early{a, false} }, "is not that of the request"},
		{"that only says that it has renewed late in a term", (*arbiters).lateRenewal,
			func(a failover.Arbiter) failover.Arbiter { return early{a, true} }, "before the end of the renewal"},
		{"that ends a grant without a deadline", (*arbiters).endless,
			func(a failover.Arbiter) failover.Arbiter { return finite{a, term} }, "without a deadline"},
		{"that refuses to renew what nobody else has got", (*arbiters).notes,
			func(a failover.Arbiter) failover.Arbiter { return &punctual{Arbiter: a} }, "of what nobody else has got"},
		{"but not a right one, by what outlives a term", (*arbiters).notes, nil, ""},
		{"but not one that gives no grants without a deadline", (*arbiters).endless,
			func(a failover.Arbiter) failover.Arbiter { return finite{a, 0} }, ""},
		{"but not a right one, by late claims", (*arbiters).lateClaim, nil, ""},
		{"but not a right one, by when its renewals count", (*arbiters).renewalCounts, nil, ""},
		{"but not a right one, by late renewals", (*arbiters).lateRenewal, nil, ""},
		{"but not a right one, by a grant without a deadline", (*arbiters).endless, nil, ""},
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
