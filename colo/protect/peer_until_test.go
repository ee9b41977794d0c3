package protect

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestAContextUntilSomethingIsKnownEndsWhenItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(hello{})
		ctx, over := p.until(t.Context(), func() bool { return p.ended })
		p.set(func() { p.begins = true })
		if synctest.Wait(); ctx.Err() != nil {
			t.Error("it has ended for something else")
		}
		p.set(func() { p.ended = true })
		if err := context.Cause(ctx); !errors.Is(err, errEnded) { // at once: nobody has to wake for it
			t.Errorf("%v, want %v", err, errEnded)
		}
		again, overAgain := p.until(t.Context(), func() bool { return p.ended })
		if err := context.Cause(again); !errors.Is(err, errEnded) {
			t.Errorf("where it is known before: %v, want %v", err, errEnded)
		}
		over()
		overAgain()
		if len(p.ends) > 0 {
			t.Errorf("%d are left of those that are over", len(p.ends))
		}
	})
}

func TestAContextUntilSomethingIsKnownIsOverWhenItIsNotNeeded(t *testing.T) {
	p := newPeer(hello{})
	asked := 0
	ctx, over := p.until(t.Context(), func() bool { asked++; return false })
	over()
	before := asked
	if p.set(func() {}); asked != before || ctx.Err() == nil {
		t.Errorf("asked %d times afterwards, and its context: %v", asked-before, ctx.Err())
	}
}
