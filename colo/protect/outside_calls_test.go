package protect

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// While a call that was left behind has not returned no other one is made: they do not pile up.
func TestNoCallIsMadeWhileOneThatWasLeftBehindHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outside
		over := make(chan struct{})
		var made atomic.Int32
		call := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := askOutside(ctx, &o, func(context.Context) (int, error) { made.Add(1); <-over; return 1, nil }, nil)
			return err
		}
		for range 3 {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if n := made.Load(); n != 1 {
			t.Errorf("%d calls were made", n)
		}
		close(over)
		synctest.Wait()
		if err := call(); err != nil || made.Load() != 2 {
			t.Errorf("%v, %d", err, made.Load())
		}
		o.wait()
	})
}

// A call that returns in the moment in which it is left behind keeps nobody from the next one.
func TestACallThatReturnsAsItIsLeftBehindKeepsNoOtherWaiting(t *testing.T) {
	var o outside
	c := &outsideCall{done: make(chan struct{})}
	if o.returns(c) || o.leave(c) {
		t.Error("it counts as left behind, and nobody hears it")
	}
	o.ends(c)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := o.free(ctx); err != nil {
		t.Error(err)
	}
}
