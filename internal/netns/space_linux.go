package netns

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

// space is a network namespace of one thread of this process.
type space struct{ do chan func() }

// enter makes one, which is there until the test ends. It skips the test where none can be
// made.
func enter(t testing.TB) space {
	t.Helper()
	require.Outside(t, require.NetNS)
	s := space{do: make(chan func())}
	begun := make(chan error)
	var thread sync.WaitGroup
	thread.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		begun <- err
		if err == nil {
			for fn := range s.do {
				fn()
			}
		}
	})
	if err := <-begun; err != nil {
		require.Missing(t, require.NetNS, err)
	}
	t.Cleanup(thread.Wait)
	t.Cleanup(func() { close(s.do) })
	return s
}

// Do calls fn in the namespace, where the sockets that it makes belong, and returns its
// error. The namespace has one thread: calls wait for one another.
func (s space) Do(fn func() error) error {
	done := make(chan error)
	s.do <- func() { done <- fn() }
	return <-done
}
