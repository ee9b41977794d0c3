package compare

import "time"

// An instant is a point in time, in nanoseconds since the first call that told the engine
// the time; that call's time is instant 1. Zero stands for no time.
type instant int64

// instant converts now, which a caller has passed. Times before that of the first call
// become instant 1.
func (e *Engine) instant(now time.Time) instant {
	if !e.dated {
		e.began, e.dated = now.Add(-1), true
		e.scan = 1 // Tick looks at all connections the first time it is called
	}
	return max(1, instant(now.Sub(e.began)))
}

// time converts i to a time of the callers' clock.
func (e *Engine) time(i instant) time.Time {
	if i == 0 {
		return time.Time{}
	}
	return e.began.Add(time.Duration(i))
}

func (i instant) Add(d time.Duration) instant { return i + instant(d) }
func (i instant) Sub(j instant) time.Duration { return time.Duration(i - j) }
func (i instant) Before(j instant) bool       { return i < j }
func (i instant) After(j instant) bool        { return i > j }
func (i instant) IsZero() bool                { return i == 0 }
