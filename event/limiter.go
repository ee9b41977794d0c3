package event

import (
	"encoding/json"
	"slices"
	"time"
)

// LimitInterval is how much time there is at least between two events of one
// kind whose rate QEMU limits.
const LimitInterval = time.Second

// maxLimited bounds how many kinds a Limiter knows at once: the peer names some
// of them. What is beyond is not limited.
const maxLimited = 1024

// LimitKey tells whether QEMU limits the rate of an event, and returns the kind that
// it belongs to: each kind is limited by itself. They are RTC_CHANGE, WATCHDOG,
// BALLOON_CHANGE, QUORUM_FAILURE, QUORUM_REPORT_BAD for each node,
// VSERPORT_CHANGE for each port, MEMORY_DEVICE_SIZE_CHANGE for each device and,
// of newer QEMUs, HV_BALLOON_STATUS_REPORT and BLOCK_IO_ERROR for each device
// where it has a qom-path.
func LimitKey(e Event) (key string, limited bool) {
	name := e.Name()
	switch e := e.(type) {
	case RTCChange, Watchdog, BalloonChange, QuorumFailure:
		return name, true
	case QuorumReportBad:
		return name + " " + e.NodeName, true
	case BlockIOError:
		return name + " " + e.QOMPath, e.QOMPath != ""
	case Unknown:
		var m struct {
			ID      string `json:"id"`
			QOMPath string `json:"qom-path"`
		}
		switch name {
		case "HV_BALLOON_STATUS_REPORT":
			return name, true
		case "VSERPORT_CHANGE":
			ok := json.Unmarshal(e.Data, &m) == nil
			return name + " " + m.ID, ok
		case "MEMORY_DEVICE_SIZE_CHANGE":
			ok := json.Unmarshal(e.Data, &m) == nil
			return name + " " + m.QOMPath, ok
		}
	}
	return "", false
}

// A Limiter limits the rate of events as QEMU's monitor does. The first of a
// kind ([LimitKey]) passes at once. Those that follow within [LimitInterval]
// are kept, each in place of the one before, and the last one passes, with its
// own time, when the interval is over; then another begins. Events that are not
// limited pass, so they may overtake one that is kept.
//
// It has no clock and no goroutine. It is asked when to call Due next; all its
// times are of one clock, of which only the differences count. The zero Limiter
// is ready. It belongs to one goroutine.
type Limiter struct {
	kinds map[limitKind]*limited
	order []limitKind // as they came, so that Due has an order
}

// limitKind tells events whose rate is limited together from others.
type limitKind struct{ guest, key string }

// limited is a kind whose last event has passed less than LimitInterval ago.
type limited struct {
	until time.Time
	last  *Record // nil: none was kept
}

// Put takes a record that is published at now, and reports whether it passes. If not, it is
// kept in place of an earlier one of its kind.
func (l *Limiter) Put(now time.Time, r Record) (pass bool) {
	key, ok := LimitKey(r.Event)
	if !ok {
		return true
	}
	kind := limitKind{r.Guest, key}
	if k := l.kinds[kind]; k != nil {
		k.last = &r
		return false
	}
	if len(l.kinds) == maxLimited {
		return true
	}
	if l.kinds == nil {
		l.kinds = make(map[limitKind]*limited)
	}
	l.kinds[kind] = &limited{until: now.Add(LimitInterval)}
	l.order = append(l.order, kind)
	return true
}

// Next returns when Due has something to do, and false if there is nothing that
// waits for it.
func (l *Limiter) Next() (at time.Time, ok bool) {
	for _, k := range l.kinds {
		if !ok || k.until.Before(at) {
			at, ok = k.until, true
		}
	}
	return at, ok
}

// Due returns the records that pass now, in the order in which their intervals
// end.
func (l *Limiter) Due(now time.Time) []Record {
	var due []limitKind
	for _, kind := range l.order {
		if !now.Before(l.kinds[kind].until) {
			due = append(due, kind)
		}
	}
	slices.SortStableFunc(due, func(a, b limitKind) int { return l.kinds[a].until.Compare(l.kinds[b].until) })
	var pass []Record
	for _, kind := range due {
		k := l.kinds[kind]
		if k.last == nil {
			delete(l.kinds, kind)
			continue
		}
		pass = append(pass, *k.last)
		k.last, k.until = nil, now.Add(LimitInterval)
	}
	l.order = slices.DeleteFunc(l.order, func(kind limitKind) bool { return l.kinds[kind] == nil })
	return pass
}
