package failovertest

import (
	"context"
	"errors"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// lateClaim has b claim the guest for the first time when most of a's term is over. b waits for
// the rest of it, or for a term from when it has seen the grant.
func (a *arbiters) lateClaim() {
	after := uint64(0)
	for _, tenths := range []time.Duration{5, 9} {
		g := a.acquire(a.A, "a", after)
		time.Sleep(time.Until(g.Sent.Add(a.term * tenths / 10)))
		got := a.acquire(a.B, "b", after+1)
		a.afterEnd(g, got)
		if err := a.B.Release(a.ctx, got, ""); err != nil {
			a.Fatal(err)
		}
		after += 2
	}
}

// renewalCounts renews a grant a while after it was given. A holder whose renewals count from the
// request before is shut out at the end of each term, though the arbiter answers.
func (a *arbiters) renewalCounts() {
	g := a.acquire(a.A, "a", 0)
	time.Sleep(a.term / 10)
	before := time.Now()
	next, err := a.A.Renew(a.ctx, g, "")
	if err != nil {
		a.Fatal(err) // nobody else has claimed it
	}
	a.counts(next, before)
}

// endless claims the guest without a term. An arbiter that gives no such grants says so of the claim.
func (a *arbiters) endless() {
	c := a.claim("a", 0)
	c.Term = 0
	g, err := a.A.Acquire(a.ctx, c)
	if errors.Is(err, failover.ErrClaim) {
		return
	}
	if err != nil || g.Term != 0 || g.Generation != 1 {
		a.Fatalf("%+v, %v", g, err)
	}
	ctx, cancel := context.WithTimeout(a.ctx, 3*a.term)
	defer cancel()
	if got, err := a.B.Acquire(ctx, a.claim("b", 1)); err == nil || errors.Is(err, failover.ErrRefused) {
		a.Fatalf("b claims what a has without a deadline: %+v, %v, want the context's error", got, err)
	}
	if err := a.A.Release(a.ctx, g, ""); err != nil {
		a.Fatal(err)
	}
	a.acquire(a.B, "b", 1)
}
