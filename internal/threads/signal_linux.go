package threads

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Signal wakes threads that wait in the kernel: a number that changes when they should look again.
// Go's scheduler needs two steps to wake a goroutine that is bound to its thread, the kernel needs
// one to wake the thread. The zero Signal is ready. It is not copied, and its methods may be called
// from any goroutine.
type Signal struct{ n atomic.Uint32 }

// Operations of futex(2), on memory that is not shared with other processes.
const (
	futexWait = 0 | 128
	futexWake = 1 | 128
)

// Raise wakes all that wait.
func (s *Signal) Raise() {
	s.n.Add(1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWake, 1<<30, 0, 0, 0)
}

// Seen returns the number for Wait. A caller takes it before it looks for work: if work
// comes after that, Wait returns at once.
func (s *Signal) Seen() uint32 { return s.n.Load() }

// Wait returns when the Signal has been raised since seen, or after limit, or sooner. Its caller's
// goroutine keeps its thread meanwhile.
func (s *Signal) Wait(seen uint32, limit time.Duration) {
	t := unix.NsecToTimespec(int64(max(limit, 0)))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.n)), futexWait, uintptr(seen), uintptr(unsafe.Pointer(&t)), 0, 0)
}
