package wait_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

func TestWhatIsDoneAtAnEndIsDoneWhenItIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := false
		stop := wait.AtEnd(ctx, func() {
			time.Sleep(time.Second) // as a close that waits for a read
			done = true
		})
		cancel()
		synctest.Wait() // it has begun
		for range 2 {
			if !stop() || !done {
				t.Error("it was not done")
			}
		}
	})
}

func TestWhatIsStoppedBeforeTheEndIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stop := wait.AtEnd(ctx, func() { t.Error("it was done") })
		for range 2 {
			if stop() {
				t.Error("it counts as done")
			}
		}
		cancel()
		synctest.Wait()
	})
}
