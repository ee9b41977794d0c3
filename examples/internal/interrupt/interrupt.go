// Package interrupt ends the example programs by a signal alike.
package interrupt

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Notify returns a context that ends with the first SIGINT, SIGTERM or SIGHUP, which its
// cause names (it matches context.Canceled), and
// what makes an exit status of the program's own: 1, which says that something has
// failed, becomes 128 and the signal's number (130, 143, 129) where a signal was
// what kept the program from finishing, as a shell says it. A service that was asked
// to stop and has done so ends with 0, and statuses of a program's own keep their
// meaning. A second signal kills the program. Status is called once, at the end.
func Notify() (ctx context.Context, status func(own int) int) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	var got syscall.Signal
	var wait sync.WaitGroup
	wait.Go(func() {
		defer signal.Stop(signals)
		select {
		case s := <-signals:
			got, _ = s.(syscall.Signal)
			cancel(received{s})
		case <-done:
		}
	})
	return ctx, func(own int) int {
		close(done)
		wait.Wait()
		cancel(nil)
		if own == 1 && got != 0 {
			return 128 + int(got)
		}
		return own
	}
}

// received is the cause of a context that a signal has ended.
type received struct{ os.Signal }

func (r received) Error() string        { return r.Signal.String() + " signal received" }
func (r received) Is(target error) bool { return target == context.Canceled }
