package threads_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/threads"
)

const long = time.Hour

func TestASignalThatWasRaisedSinceItWasSeenDoesNotWait(t *testing.T) {
	var s threads.Signal
	seen := s.Seen()
	s.Raise()
	s.Wait(seen, long)
}

func TestAWaitEndsAtItsLimit(t *testing.T) {
	var s threads.Signal
	for _, d := range []time.Duration{-long, 0, time.Nanosecond, time.Millisecond} {
		s.Wait(s.Seen(), d)
	}
}

func TestASignalWakesAllThatWait(t *testing.T) {
	var s threads.Signal
	var done atomic.Bool
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				seen := s.Seen()
				if done.Load() {
					return
				}
				s.Wait(seen, long)
			}
		})
	}
	done.Store(true)
	s.Raise()
	group.Wait()
}
