package heartbeat

import "time"

// A Monitor judges the silence of a peer. It has no clock: every method that
// cares is told the time. It belongs to one goroutine.
type Monitor struct {
	// Timeout is how long the peer may be silent.
	Timeout time.Duration

	last    time.Time
	excuses int // since the peer was heard
}

// maxExcuses is how often in a row a silence may be put down to this process.
const maxExcuses = 3

// Beat says that the peer was heard at now. The caller also calls it once when it begins to
// listen. Time does not go back: a beat that is earlier than the last one counts as one at
// the time of the last one.
func (m *Monitor) Beat(now time.Time) {
	if now.After(m.last) {
		m.last = now
	}
	m.excuses = 0
}

// Deadline returns when the peer will be lost if it stays silent.
func (m *Monitor) Deadline() time.Time { return m.last.Add(m.Timeout) }

// Lost reports whether at now the peer has been silent for the whole timeout.
func (m *Monitor) Lost(now time.Time) bool { return !now.Before(m.Deadline()) }

// Excuse reports whether the silence may be the fault of this process: now, the time at
// which the caller got to look, is more than grace after the deadline at which it meant
// to look. A process that was stopped (or whose machine was) finds itself there, with the
// peer's beats waiting to be read. If so, the deadline moves to grace after now. Three
// times in a row, without a Beat between them, are the limit: a host that is always late
// would otherwise never find a dead peer.
func (m *Monitor) Excuse(now time.Time, grace time.Duration) bool {
	if now.Sub(m.Deadline()) <= grace || m.excuses >= maxExcuses {
		return false
	}
	m.excuses++
	m.last = now.Add(grace - m.Timeout)
	return true
}
