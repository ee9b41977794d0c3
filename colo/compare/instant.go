package compare

import "time"

// An instant is a time as the engine keeps it, in nanoseconds since the engine was
// first told one, at which it was 1. Zero is no time.
type instant int64

// instant returns now, which a caller has told. A clock that was set back behind the
// first time stands at that one.
func (e *Engine) instant(now time.Time) instant {
	if e.began.IsZero() {
		e.began = now.Add(-1)
	}
	return max(1, instant(now.Sub(e.began)))
}

// time returns what the callers call i.
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
