package failovertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// Two are the arbiters of two hosts for one guest, as if in two processes.
type Two struct{ A, B failover.Arbiter }

// TestArbiter checks an implementation of failover.Arbiter against its contract. newTwo
// makes the arbiters for a guest that was never granted and frees them with t.Cleanup.
// term is as short a term as the arbiters can keep. The test takes some terms of real time. Where
// a call does not return though its context has ended, the test fails with the name of the method,
// leaves the goroutine of that call behind, and makes no more of its checks. Of failover.StoreArbiters over a store of your own, run [TestStore] first.
func TestArbiter(t *testing.T, term time.Duration, newTwo func(t *testing.T) Two) {
	var hangs atomic.Bool
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { check(t, c.fn, term, &hangs, newTwo(t)) })
		if hangs.Load() {
			return
		}
	}
}

// TestArbiterInBubble is TestArbiter with each check in a bubble of testing/synctest, whose time
// passes at once whenever all wait for it. It is for arbiters that wait for time, for one another
// and for calls of the system that return by themselves, such as those of files; an arbiter that
// waits for a network or for another process stops that time, and needs TestArbiter. newTwo is
// called in the bubble.
func TestArbiterInBubble(t *testing.T, term time.Duration, newTwo func(t *testing.T) Two) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { check(t, c.fn, term, new(atomic.Bool), newTwo(t)) })
		})
	}
}

var checks = []struct {
	name string
	fn   func(*arbiters)
}{
	{"first claim is granted generation 1", (*arbiters).first},
	{"a claim waits for the holder's term", (*arbiters).waitsForTerm},
	{"a claim that comes late in a term waits for its end", (*arbiters).lateClaim},
	{"renewals keep the other out", (*arbiters).renewals},
	{"a renewal counts from its own request", (*arbiters).renewalCounts},
	{"a renewal late in a term keeps the other out", (*arbiters).lateRenewal},
	{"a grant without a deadline lasts until it is released", (*arbiters).endless},
	{"release lets the other in at once", (*arbiters).release},
	{"a guest that its holder gives up is the claimant's at once", (*arbiters).givenUp},
	{"a holder's own claim begins a generation", (*arbiters).ownClaim},
	{"an old copy is refused", (*arbiters).oldCopy},
	{"a record that was put back is refused", (*arbiters).putBack},
	{"a deposed holder is refused", (*arbiters).deposed},
	{"a claim can be repeated", (*arbiters).repeated},
	{"watch reports the holder, not renewals", (*arbiters).watch},
	{"notes outlive the grant, and its holder renews it", (*arbiters).notes},
	{"a claim ends with its context", (*arbiters).contexts},
	{"of many claims one is granted", (*arbiters).race},
	{"what is not valid is refused before anybody is asked", (*arbiters).invalid},
}

// check makes one check. hangs is set if a call has not returned.
func check(t testing.TB, fn func(*arbiters), term time.Duration, hangs *atomic.Bool, two Two) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*term+time.Minute)
	defer cancel()
	b := &bound{t, 10*term + 10*time.Second, hangs} // no call of a check waits for longer than three terms
	two = Two{A: &bounded{two.A, b}, B: &bounded{two.B, b}}
	fn(&arbiters{TB: t, Two: two, ctx: ctx, term: term})
}

// arbiters is a test of an arbiter, with the Arbiters of two hosts over one place.
type arbiters struct {
	testing.TB
	Two
	ctx  context.Context
	term time.Duration
}

func (a *arbiters) claim(who string, after uint64) failover.Claim {
	return failover.Claim{Holder: who, Token: "token of " + who, After: after, Term: a.term, Note: "note of " + who}
}

func (a *arbiters) acquire(on failover.Arbiter, who string, after uint64) failover.Grant {
	a.Helper()
	before := time.Now()
	g, err := on.Acquire(a.ctx, a.claim(who, after))
	if err != nil {
		a.Fatalf("%s after %d: %v", who, after, err)
	}
	if g.Generation != after+1 || g.Token != "token of "+who || g.Term != a.term {
		a.Fatalf("%s after %d: %+v", who, after, g)
	}
	a.counts(g, before)
	return g
}

// counts reports that a grant counts from a request that was sent no earlier than before.
func (a *arbiters) counts(g failover.Grant, before time.Time) {
	a.Helper()
	if g.Sent.Before(before) || g.Sent.After(time.Now()) {
		a.Fatal("the grant counts from a time that is not that of the request")
	}
	if now := time.Now(); g.Sent == g.Sent.Round(0) && now != now.Round(0) { // in a bubble no time has one
		a.Fatal("the grant counts from a time without a monotonic reading, so that a step of the clock prolongs it")
	}
}

func (a *arbiters) refused(what string, err error) {
	a.Helper()
	if !errors.Is(err, failover.ErrRefused) {
		a.Errorf("%s: %v, want a refusal", what, err)
	}
}

func (a *arbiters) first() {
	if r, err := a.A.Record(a.ctx); err != nil || r != (failover.Record{}) {
		a.Fatalf("before the first claim: %+v, %v", r, err)
	}
	a.acquire(a.A, "a", 0)
	r, err := a.B.Record(a.ctx)
	if err != nil || r.Generation != 1 || r.Holder != "a" || r.Term != a.term || r.Note != "note of a" || !r.Held() {
		a.Errorf("%+v, %v", r, err)
	}
}

// free reports that b's claim was granted no earlier than the end of a grant.
func (a *arbiters) afterEnd(g failover.Grant, b failover.Grant) {
	a.Helper()
	// b's request was sent earlier than it was granted; what counts is now.
	if end := g.Sent.Add(g.Term - failover.Margin(g.Term)); time.Now().Before(end) {
		a.Errorf("generation %d was granted before generation %d ended", b.Generation, g.Generation)
	}
}

func (a *arbiters) waitsForTerm() {
	g := a.acquire(a.A, "a", 0)
	a.afterEnd(g, a.acquire(a.B, "b", 1))
}

// tries is how often what a slow machine may have done is tried again.
const tries = 5

// starved watches whether this process gets CPU time, until the function that it returns is
// called. That function reports whether the process got none for half a term.
func (a *arbiters) starved() func() bool {
	done, most := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var gap time.Duration
		for ended := false; !ended; {
			last, tick := time.Now(), time.NewTimer(a.term/10)
			select {
			case <-tick.C:
			case <-done:
				ended = true
			case <-a.ctx.Done(): // a check has failed
				ended = true
			}
			tick.Stop()
			gap = max(gap, time.Since(last))
		}
		most <- gap
	}()
	return func() bool {
		close(done)
		return <-most >= a.term/2
	}
}

// A holder that gets no CPU for a term loses its grant, which shows nothing about the arbiter.
// So the check is repeated: without a bound while this process was starved, and else a few
// times.
func (a *arbiters) renewals() {
	after := uint64(0)
	for left := tries; left > 0; after += 2 {
		starved := a.starved()
		renewed := a.renewed(after)
		if without := starved(); renewed {
			return
		} else if !without {
			left--
		}
	}
	a.Errorf("in %d tries a holder was never able to renew for %v while another claimed: each time the other was granted", tries, 3*a.term)
}

// renewed has a renew while b claims. It returns false if b was granted what a was too
// late to renew.
func (a *arbiters) renewed(after uint64) bool {
	g := a.acquire(a.A, "a", after)
	ctx, cancel := context.WithTimeout(a.ctx, 3*a.term)
	defer cancel()
	var lost error
	var refused time.Time // when lost came
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		for ctx.Err() == nil {
			next, err := a.A.Renew(a.ctx, g, "still a")
			if err != nil {
				lost, refused = err, time.Now()
				return
			}
			if next.Sent.Before(g.Sent) || next.Generation != after+1 || next.Term != a.term {
				a.Errorf("renew: %+v", next)
				return
			}
			g = next
			time.Sleep(a.term / 5)
		}
	}()
	got, err := a.B.Acquire(ctx, a.claim("b", after+1))
	at := time.Now()
	cancel()
	<-renewing
	granted := err == nil
	switch end := g.Sent.Add(g.Term - failover.Margin(g.Term)); {
	case errors.Is(lost, failover.ErrRefused) && refused.Before(end):
		a.Errorf("a renewal was refused %v before the grant ended: %v", end.Sub(refused), lost)
		return true
	case granted && at.Before(end):
		a.Errorf("b got %+v while a renewed", got)
	case granted && (lost == nil || errors.Is(lost, failover.ErrRefused)):
		return false
	case errors.Is(err, failover.ErrRefused):
		a.Errorf("%v: a claim that waits is not refused", err)
	}
	if lost != nil {
		a.Errorf("renew: %v", lost)
	}
	return true
}

func (a *arbiters) release() {
	g := a.acquire(a.A, "a", 0)
	if err := a.A.Release(a.ctx, g, "done"); err != nil {
		a.Fatal(err)
	}
	if r, err := a.B.Record(a.ctx); err != nil || r.Held() || r.Generation != 1 || r.Note != "done" {
		a.Errorf("%+v, %v", r, err)
	}
	a.acquire(a.B, "b", 1)
	a.refused("a second release", a.A.Release(a.ctx, g, ""))
	_, err := a.A.Renew(a.ctx, g, "")
	a.refused("a renewal after the release", err)
}

// givenUp is for arbiters that heed failover.Claim.From.
func (a *arbiters) givenUp() {
	if !failover.HeedsFrom(a.B) {
		return
	}
	const terms = 20 // of the holder, which a busy machine does not let pass
	claim := a.claim("a", 0)
	claim.Term = terms * a.term
	g, err := a.A.Acquire(a.ctx, claim)
	if err != nil || g.Generation != 1 {
		a.Fatalf("%+v, %v", g, err)
	}
	from := func(token string, after uint64) failover.Claim {
		c := a.claim("b", after)
		c.From = token
		return c
	}
	if _, err := a.B.Record(a.ctx); err != nil { // as a host that follows does
		a.Fatal(err)
	}
	begin := time.Now()
	next, err := a.B.Acquire(a.ctx, from(g.Token, 1))
	if err != nil || next.Generation != 2 || next.Token != "token of b" || next.Term != a.term {
		a.Fatalf("%+v, %v", next, err)
	}
	if d := time.Since(begin); d > terms/2*a.term {
		a.Errorf("it waited %v, though the holder has given the guest up", d)
	}
	if again, err := a.B.Acquire(a.ctx, from(g.Token, 1)); err != nil || again.Generation != 2 {
		a.Errorf("the same once more, because its answer was lost: %+v, %v", again, err)
	}
	_, err = a.A.Renew(a.ctx, g, "")
	a.refused("a renewal after that", err)
	a.refused("a release after that", a.A.Release(a.ctx, g, ""))
	_, err = a.A.Acquire(a.ctx, a.claim("a", 1))
	a.refused("a claim of the host that has given it up", err)
	_, err = a.A.Acquire(a.ctx, failover.Claim{Holder: "c", Token: "token of c", After: 1, From: g.Token, Term: a.term})
	a.refused("a second claim from the same holder", err)

	// Whoever holds the guest keeps it from a claim that names another.
	asking, cancel := context.WithTimeout(a.ctx, a.term/4)
	defer cancel()
	if got, err := a.A.Acquire(asking, failover.Claim{Holder: "a", Token: "token of a", After: 2, From: g.Token, Term: a.term}); err == nil {
		a.Errorf("a claim from a holder of long ago is granted: %+v", got)
	}
	if _, err := a.B.Acquire(a.ctx, from(string(make([]byte, failover.MaxName+1)), 2)); !errors.Is(err, failover.ErrClaim) {
		a.Errorf("a claim from a holder with too long a token: %v", err)
	}
}

func (a *arbiters) ownClaim() {
	first := a.acquire(a.A, "a", 0)
	a.acquire(a.A, "a", 1)
	_, err := a.A.Renew(a.ctx, first, "")
	a.refused("the first grant", err)
	_, err = a.B.Acquire(a.ctx, a.claim("b", 1))
	a.refused("the secondary that was left behind", err)
}

func (a *arbiters) oldCopy() {
	g := a.acquire(a.A, "a", 0)
	g = a.acquire(a.A, "a", g.Generation)
	if err := a.A.Release(a.ctx, g, ""); err != nil {
		a.Fatal(err)
	}
	_, err := a.B.Acquire(a.ctx, a.claim("b", 1))
	a.refused("an old copy, of a guest that nobody has", err)
	a.acquire(a.B, "b", 2)
}

func (a *arbiters) putBack() {
	a.acquire(a.A, "a", 0)
	_, err := a.B.Acquire(a.ctx, a.claim("b", 7))
	a.refused("a claim after a generation that the record does not know", err)
}

func (a *arbiters) deposed() {
	g := a.acquire(a.A, "a", 0)
	a.acquire(a.B, "b", 1)
	_, err := a.A.Renew(a.ctx, g, "")
	a.refused("renew", err)
	a.refused("release", a.A.Release(a.ctx, g, ""))
	_, err = a.A.Acquire(a.ctx, a.claim("a", 1))
	a.refused("acquire", err)
	if r, err := a.A.Record(a.ctx); err != nil || r.Holder != "b" || r.Generation != 2 {
		a.Errorf("%+v, %v", r, err)
	}
}

func (a *arbiters) repeated() {
	a.acquire(a.A, "a", 0)
	a.acquire(a.A, "a", 0) // as if the first answer were lost
	if r, err := a.A.Record(a.ctx); err != nil || r.Generation != 1 {
		a.Errorf("%+v, %v", r, err)
	}
}

func (a *arbiters) watch() {
	g := a.acquire(a.A, "a", 0)
	seen, err := a.B.Record(a.ctx)
	if err != nil {
		a.Fatal(err)
	}
	got := make(chan failover.Record, 1)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		r, err := a.B.Watch(a.ctx, seen)
		if err != nil {
			a.Error(err)
		}
		got <- r
	})
	for range 3 {
		if g, err = a.A.Renew(a.ctx, g, "renewed"); err != nil {
			a.Fatal(err)
		}
	}
	time.Sleep(a.term / 4)
	select {
	case r := <-got:
		a.Fatalf("a renewal was reported: %+v", r)
	default:
	}
	if err := a.A.Release(a.ctx, g, "bye"); err != nil {
		a.Fatal(err)
	}
	if r := <-got; r.Held() || r.Generation != 1 {
		a.Errorf("%+v", r)
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.term/4)
	defer cancel()
	last, _ := a.B.Record(a.ctx)
	if r, err := a.B.Watch(ctx, last); err == nil {
		a.Errorf("a change that did not happen: %+v", r)
	}
}

func (a *arbiters) notes() {
	g := a.acquire(a.A, "a", 0)
	if _, err := a.A.Renew(a.ctx, g, "checkpoint 7"); err != nil {
		a.Fatal(err)
	}
	time.Sleep(2 * a.term)
	if r, err := a.B.Record(a.ctx); err != nil || r.Note != "checkpoint 7" || r.Generation != 1 {
		a.Errorf("after the term: %+v, %v", r, err)
	}
	// As when a holder could not reach the arbiter for a while, and nobody else has claimed the guest.
	if _, err := a.A.Renew(a.ctx, g, ""); err != nil {
		a.Errorf("a renewal after the term of what nobody else has got: %v", err)
	}
}

func (a *arbiters) contexts() {
	after := uint64(0)
	for left := tries; left > 0; after += 2 {
		a.acquire(a.A, "a", after)
		starved, began := a.starved(), time.Now()
		ctx, cancel := context.WithTimeout(a.ctx, a.term/4)
		_, err := a.B.Acquire(ctx, a.claim("b", after+1))
		cancel()
		without := starved()
		if err == nil && time.Since(began) >= a.term {
			if !without {
				left--
			}
			continue // there may have been no CPU to end it in time
		}
		if err == nil || errors.Is(err, failover.ErrRefused) {
			a.Errorf("%v, want the context's error", err)
		}
		a.acquire(a.B, "b", after+1) // and what was given up left nothing behind
		return
	}
	a.Errorf("of %d claims whose contexts ended after %v, each was granted after %v or more", tries, a.term/4, a.term)
}

func (a *arbiters) race() {
	var group sync.WaitGroup
	var mu sync.Mutex
	granted := 0
	for i := range 8 {
		group.Go(func() {
			on := a.A
			if i%2 == 1 {
				on = a.B
			}
			_, err := on.Acquire(a.ctx, a.claim(fmt.Sprint(i), 0))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				granted++
			} else if !errors.Is(err, failover.ErrRefused) {
				a.Errorf("%v: after the first grant the others are old", err)
			}
		})
	}
	group.Wait()
	if granted != 1 {
		a.Errorf("%d of 8 claims were granted", granted)
	}
}

func (a *arbiters) invalid() {
	for _, c := range []failover.Claim{
		{Token: "t"}, {Holder: "h"}, {Holder: "h", Token: "t", Term: -1}, {Holder: "h\xff", Token: "t"},
		{Holder: "h", Token: "t", Note: string(make([]byte, failover.MaxNote+1))},
	} {
		if _, err := a.A.Acquire(a.ctx, c); !errors.Is(err, failover.ErrClaim) {
			a.Errorf("%+v: %v, want ErrClaim", c, err)
		}
	}
	if r, err := a.A.Record(a.ctx); err != nil || r != (failover.Record{}) {
		a.Errorf("%+v, %v", r, err)
	}
}
