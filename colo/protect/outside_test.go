package protect

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// While a call that was left behind has not returned no other one is made: they do not pile up.
func TestNoCallIsMadeWhileOneThatWasLeftBehindHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outside
		over, made := make(chan struct{}), 0
		call := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := askOutside(ctx, &o, func(context.Context) (int, error) { made++; <-over; return 1, nil })
			return err
		}
		for range 3 {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if made != 1 {
			t.Errorf("%d calls were made", made)
		}
		close(over)
		synctest.Wait()
		if err := call(); err != nil || made != 2 {
			t.Errorf("%v, %d", err, made)
		}
		o.wait()
	})
}
