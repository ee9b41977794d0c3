//go:build linux && amd64

package kvm

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signal wakes threads that wait: a number that changes when they should look again. The
// goroutine of a vCPU is bound to its thread, and the scheduler needs two steps to wake such
// a goroutine from another; so the thread itself waits, in the kernel.
type signal struct{ n atomic.Uint32 }

// Operations of futex(2), on memory that is not shared with other processes.
const (
	futexWait = 0 | 128
	futexWake = 1 | 128
)

// longestWait bounds a wait, after which the caller looks again: that costs next to nothing,
// and a lost wake-up cannot hang a guest.
const longestWait = 100 * time.Millisecond

// raise wakes all that wait.
func (s *signal) raise() {
	s.n.Add(1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWake, 1<<30, 0, 0, 0)
}

// seen returns the number for wait. A caller takes it before it looks for work: if work
// comes after that, wait returns at once.
func (s *signal) seen() uint32 { return s.n.Load() }

// wait returns when the signal has been raised since seen, or sooner.
func (s *signal) wait(seen uint32) {
	limit := unix.NsecToTimespec(int64(longestWait))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWait, uintptr(seen), uintptr(unsafe.Pointer(&limit)), 0, 0)
}

// watch does what wait does, but spins for a while before it waits in the kernel.
func (s *signal) watch(seen uint32, while time.Duration) {
	for begun := time.Now(); time.Since(begun) < while; {
		if s.n.Load() != seen {
			return
		}
	}
	s.wait(seen)
}
