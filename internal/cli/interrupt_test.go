//go:build unix

package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// hearHangups undoes what nohup does, under which these tests may run themselves: a program that
// takes SIGHUP once does not ignore it any more.
func hearHangups(t *testing.T) {
	taken := make(chan os.Signal, 1)
	signal.Notify(taken, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(taken) })
}

func TestASignalIsInTheExitStatusOfAProgramThatCouldNotFinish(t *testing.T) {
	hearHangups(t)
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		for own, want := range map[int]int{0: 0, 1: want, 4: 4} {
			ctx, status := Notify()
			if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
				t.Fatal(err)
			}
			<-ctx.Done()
			if why := context.Cause(ctx); !errors.Is(why, context.Canceled) || why.Error() != sig.String()+" signal received" {
				t.Errorf("%v: the context has ended by %v", sig, why)
			}
			if got := status(own); got != want {
				t.Errorf("%v: a program that ends with %d has status %d, want %d", sig, own, got, want)
			}
		}
	}
}

// nohup starts a program with SIGHUP ignored, and the end of the terminal ends no guest then.
func TestAProgramThatNohupHasStartedOutlivesItsTerminal(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	ctx, status := Notify()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	<-ctx.Done()
	if got := status(1); got != 143 {
		t.Errorf("status %d: it is not SIGTERM that has ended it", got)
	}
}

func TestWithoutASignalTheStatusIsTheProgramsOwn(t *testing.T) {
	for _, own := range []int{0, 1, 2} {
		ctx, status := Notify()
		if ctx.Err() != nil {
			t.Error("the context has ended")
		}
		if got := status(own); got != own {
			t.Errorf("status %d, want %d", got, own)
		}
		if ctx.Err() == nil {
			t.Error("the context has not ended with the program")
		}
	}
}
