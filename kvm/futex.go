//go:build linux && amd64

package kvm

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signal is what threads wait at: a number that changes when there is something to look
// at. A vCPU's goroutine is bound to its thread, and to hand it over from one that wakes
// it takes the scheduler two steps; so the thread itself waits, in the kernel.
type signal struct{ n atomic.Uint32 }

// Operations of futex(2), on memory that is not shared with other processes.
const (
	futexWait = 0 | 128
	futexWake = 1 | 128
)

// longestWait is how long a wait lasts at most, after which its caller looks again: it
// costs nothing, and no wake-up that is lost hangs a guest.
const longestWait = 100 * time.Millisecond

// raise has all look who wait.
func (s *signal) raise() {
	s.n.Add(1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWake, 1<<30, 0, 0, 0)
}

// seen returns what wait is told: what was looked at after seen, and is not there, is
// not missed.
func (s *signal) seen() uint32 { return s.n.Load() }

// wait returns when the signal has been raised since seen, or sooner.
func (s *signal) wait(seen uint32) {
	limit := unix.NsecToTimespec(int64(longestWait))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWait, uintptr(seen), uintptr(unsafe.Pointer(&limit)), 0, 0)
}

// watch is wait, but looks for a while before it waits in the kernel.
func (s *signal) watch(seen uint32, while time.Duration) {
	for begun := time.Now(); time.Since(begun) < while; {
		if s.n.Load() != seen {
			return
		}
	}
	s.wait(seen)
}
