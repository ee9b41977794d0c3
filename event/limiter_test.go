package event_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A guest of a QEMU 7.2.22 wrote its clock every 0.2 s; its monitor said so after
// 0.002, 1.003, 2.003 and 3.003 s, each but the first with the last offset.
func TestOfLimitedEventsTheFirstPassesAndThenTheLastOfEachSecond(t *testing.T) {
	start := time.Unix(100, 0)
	var l event.Limiter
	var got []string
	pass := func(now time.Time, r event.Record) {
		got = append(got, fmt.Sprintf("%v: %d of %v", now.Sub(start), r.Event.(event.RTCChange).Offset, r.Time.Sub(start)))
	}
	for i := range 13 {
		now := start.Add(time.Duration(i) * 200 * time.Millisecond)
		for at, ok := l.Next(); ok && at.Before(now); at, ok = l.Next() {
			for _, r := range l.Due(at) {
				pass(at, r)
			}
		}
		r := event.Record{Time: now, Event: event.RTCChange{Offset: int64(i)}}
		if l.Put(now, r) {
			pass(now, r)
		}
	}
	for at, ok := l.Next(); ok; at, ok = l.Next() {
		for _, r := range l.Due(at) {
			pass(at, r)
		}
	}
	want := []string{"0s: 0 of 0s", "1s: 5 of 1s", "2s: 10 of 2s", "3s: 12 of 2.4s"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if r := (event.Record{Event: event.RTCChange{Offset: 99}}); !l.Put(start.Add(time.Minute), r) {
		t.Error("one that comes long after does not pass at once")
	}
}

func TestKindsAreLimitedOneByOne(t *testing.T) {
	unknown := func(name, data string) event.Event {
		return event.Unknown{Event: name, Data: json.RawMessage(data)}
	}
	for _, c := range []struct {
		e       event.Event
		limited bool
	}{
		{event.RTCChange{}, true}, {event.Watchdog{}, true}, {event.BalloonChange{}, true}, {event.QuorumFailure{}, true},
		{event.QuorumReportBad{NodeName: "a"}, true}, {event.QuorumReportBad{NodeName: "b"}, true},
		{unknown("VSERPORT_CHANGE", `{"id":"a","open":true}`), true}, {unknown("VSERPORT_CHANGE", `{"id":"b","open":true}`), true},
		{unknown("MEMORY_DEVICE_SIZE_CHANGE", `{"qom-path":"a","size":1}`), true},
		{unknown("HV_BALLOON_STATUS_REPORT", `{}`), true},
		{event.BlockIOError{QOMPath: "a"}, true}, {event.BlockIOError{QOMPath: "b"}, true},
		{event.BlockIOError{}, false}, {event.Stop{}, false}, {event.COLOExit{}, false}, {event.Reset{}, false},
		{event.BlockJobError{}, false}, {event.Migration{}, false}, {event.CheckpointCommit{}, false}, {unknown("X", `{"id":"a"}`), false},
	} {
		var l event.Limiter
		now := time.Unix(1, 0)
		if !l.Put(now, event.Record{Event: c.e}) {
			t.Errorf("%#v: the first does not pass", c.e)
		}
		if pass := l.Put(now, event.Record{Event: c.e}); pass == c.limited {
			t.Errorf("%#v: limited %t, want %t", c.e, !pass, c.limited)
		}
		if pass := l.Put(now, event.Record{Guest: "other", Event: c.e}); !pass {
			t.Errorf("%#v: one guest limits another", c.e)
		}
	}
	var l event.Limiter
	for _, node := range []string{"a", "b"} {
		if !l.Put(time.Unix(1, 0), event.Record{Event: event.QuorumReportBad{NodeName: node}}) {
			t.Errorf("one node limits another: %s", node)
		}
	}
}

func TestALimiterKnowsABoundedNumberOfKinds(t *testing.T) {
	var l event.Limiter
	now := time.Unix(1, 0)
	for i := range 5000 {
		for range 2 {
			l.Put(now, event.Record{Event: event.QuorumReportBad{NodeName: fmt.Sprint(i)}})
		}
	}
	if n := len(l.Due(now.Add(time.Hour))); n == 0 || n > 1024 {
		t.Errorf("%d are kept", n)
	}
	l.Due(now.Add(2 * time.Hour))
	if _, ok := l.Next(); ok {
		t.Error("it waits for something with nothing left")
	}
}
