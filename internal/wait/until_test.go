package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

func TestWhatIsDoneAlreadyIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := wait.Until(t.Context(), func() bool { return true }); err != nil || time.Since(start) > 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// Nobody waits for much longer than it takes, and what takes long is not looked at all the time.
func TestWhatIsWaitedForIsNoticedSoonAndLookedAtSeldom(t *testing.T) {
	for _, takes := range []time.Duration{time.Microsecond, 50 * time.Microsecond, 300 * time.Microsecond, 5 * time.Millisecond, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			start, looks := time.Now(), 0
			err := wait.Until(t.Context(), func() bool { looks++; return time.Since(start) >= takes })
			if late := time.Since(start) - takes; err != nil || late > max(takes, 20*time.Microsecond) || late > time.Millisecond {
				t.Errorf("%v: %v, %v late", takes, err, late)
			}
			if most := 8 + int(takes/time.Millisecond); looks > most {
				t.Errorf("%v: %d looks, at most %d are needed", takes, looks, most)
			}
		})
	}
}

func TestWhatIsNeverDoneIsWaitedForUntilTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the host is to stop")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		if err := wait.Until(ctx, func() bool { return false }); err != why {
			t.Error(err)
		}
	})
}
