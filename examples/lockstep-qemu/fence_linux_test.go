package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What a fence has started ends with it, where it did not end by itself: it would act upon a host later, on
// which the guest may run again by then.
func TestAFenceThatIsGivenUpLeavesNothingBehind(t *testing.T) {
	if testing.Short() {
		t.Skip("a fence is a program")
	}
	at := filepath.Join(t.TempDir(), "pid")
	why := errors.New("it was given a moment")
	ctx, cancel := context.WithCancelCause(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if b, _ := os.ReadFile(at); strings.HasSuffix(string(b), "\n") {
				cancel(why)
			}
		}
	})
	err := shell(ctx, "sleep 600 & echo $! >"+at+"; wait")
	cancel(nil)
	watch.Wait()
	if !errors.Is(err, why) {
		t.Errorf("it was ended by %v", err)
	}
	b, _ := os.ReadFile(at)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "what it has started runs", func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || isZombie(pid)
	})
}

// isZombie reports whether a process has ended that nobody has waited for: one whose parent has ended is init's to
// wait for, and a container may have none that does.
func isZombie(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(state, "Z")
}
