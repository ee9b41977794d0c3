package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Notify returns a context that ends with the first SIGINT, SIGTERM or SIGHUP; its cause names
// the signal and matches context.Canceled. A second signal kills the program. At its end the
// program calls status once, with the exit status that it has chosen: 1, which says that
// something has failed, becomes 128 and the number of the signal (130, 143, 129) if one has
// come, as a shell says it. Other statuses stay: a service that was asked to stop, and has
// stopped, ends with 0. A program that nohup has started outlives its terminal: see Signals.
func Notify() (ctx context.Context, status func(own int) int) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, Signals()...)
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

// Signals returns the signals that end a program in good order: SIGINT, SIGTERM, and SIGHUP unless
// the program was started with SIGHUP ignored, as nohup does so that the end of a terminal ends
// nothing.
func Signals() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	}
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
}

// received is the cause of a context that a signal has ended.
type received struct{ os.Signal }

func (r received) Error() string        { return r.Signal.String() + " signal received" }
func (r received) Is(target error) bool { return target == context.Canceled }
