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

// renewalCounts renews a grant a while after it was given, early and late in its term. A holder whose
// renewals count from the request before is shut out at the end of each term, though the arbiter answers.
func (a *arbiters) renewalCounts() {
	g := a.acquire(a.A, "a", 0)
	for _, tenths := range []time.Duration{1, 6, 9} {
		time.Sleep(time.Until(g.Sent.Add(a.term * tenths / 10)))
		before := time.Now()
		next, err := a.A.Renew(a.ctx, g, "")
		if err != nil {
			a.Fatal(err) // nobody else has claimed it
		}
		a.counts(next, before)
		g = next
	}
}

// lateRenewal has a renew for the first time in the second half of its term, while b, which has claimed the guest
// from the beginning, waits for the end. An arbiter that answers without recording it grants b what a still has.
func (a *arbiters) lateRenewal() {
	after := uint64(0)
	for range tries {
		g := a.acquire(a.A, "a", after)
		type granted struct {
			failover.Grant
			at  time.Time
			err error
		}
		claim := make(chan granted, 1)
		go func() {
			got, err := a.B.Acquire(a.ctx, a.claim("b", g.Generation))
			claim <- granted{got, time.Now(), err}
		}()
		time.Sleep(time.Until(g.Sent.Add(a.term * 6 / 10)))
		next, err := a.A.Renew(a.ctx, g, "late")
		late := time.Now().After(g.Sent.Add(g.Term - failover.Margin(g.Term)))
		got := <-claim
		if got.err != nil {
			a.Fatal(got.err)
		}
		switch {
		case err == nil:
			if end := next.Sent.Add(next.Term - failover.Margin(next.Term)); got.at.Before(end) {
				a.Errorf("generation %d was granted %v before the end of the renewal of generation %d", got.Generation, end.Sub(got.at), g.Generation)
			}
			return
		case !late:
			a.Fatalf("a renewal in its term: %v", err)
		}
		if err := a.B.Release(a.ctx, got.Grant, ""); err != nil { // this process got no CPU for too long
			a.Fatal(err)
		}
		after = got.Generation
	}
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
