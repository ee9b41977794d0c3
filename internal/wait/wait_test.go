package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

func TestAWaitLastsAsLongAsItWasTold(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, 0, time.Nanosecond, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			if err := wait.For(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took != max(d, 0) {
				t.Errorf("a wait for %v took %v", d, took)
			}
		})
	}
}

func TestAWaitEndsWithItsContextAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the host is to stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		start := time.Now()
		if err := wait.For(ctx, time.Hour); !errors.Is(err, why) {
			t.Errorf("%v, want the cause", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("it ended after %v, want 1s", took)
		}
	})
}
