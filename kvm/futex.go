//go:build linux && amd64

package kvm

import (
	"time"

	"github.com/gocolo/lockstep/internal/threads"
)

// signal wakes threads that wait for it, whether they wait in the kernel or still spin.
type signal struct{ threads.Signal }

// longestWait bounds a wait, after which the caller looks again: that costs next to nothing,
// and a lost wake-up cannot hang a guest.
const longestWait = 100 * time.Millisecond

// watch does what Wait does, but spins for a while before it waits in the kernel. It reports
// whether the signal was raised meanwhile.
func (s *signal) watch(seen uint32, while time.Duration) bool {
	for begun := time.Now(); time.Since(begun) < while; {
		if s.Seen() != seen {
			return true
		}
	}
	s.Wait(seen, longestWait)
	return false
}

// lookout decides whether a thread watches a signal, which is to spin, before it waits in the
// kernel. Watching in vain takes a CPU that the thread which is to raise the signal may need. So
// a thread that has watched in vain inVain times in a row watches only now and then, until it
// sees the signal raised. vain counts the failures in a row, rests the waits that are left
// without watching.
type lookout struct{ vain, rests int }

const (
	inVain = 8
	rests  = 15 // waits without watching before the next attempt
)

// length returns how long to watch this time: while, or 0 for a wait without watching.
func (l *lookout) length(while time.Duration) time.Duration {
	if while > 0 && l.rests > 0 {
		l.rests--
		return 0
	}
	return while
}

// learn records an attempt: how long the thread was to watch, and whether it saw the signal
// raised.
func (l *lookout) learn(watched time.Duration, raised bool) {
	switch {
	case watched == 0:
	case raised:
		l.vain = 0
	default:
		if l.vain = min(l.vain+1, inVain); l.vain == inVain {
			l.rests = rests
		}
	}
}
