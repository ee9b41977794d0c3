package protect

import (
	"testing"
	"testing/synctest"
	"time"
)

// succeeds has host b take over from host a, which is cut off from all while it has the guest, and
// returns how often a host acted for the guest that must not, or while the other might. later puts the cut
// at another place between two renewals.
func succeeds(t *testing.T, rates map[string]float64, later time.Duration) (together int64) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rates, w.apart = rates, true
		w.term = 3 * time.Second // longer than anybody waits for a host that is not heard
		w.f.ways = newWays(w.newest, func() time.Duration { return 0 })
		a, b := w.protected()
		time.Sleep(5*w.term + later) // until the arbiter and the secondary have answered a while
		a.noArbiter.Store(true)
		w.f.ways.quiet("a", "b")
		w.f.ways.quiet("b", "a")
		b.is(Alone)
		if r, _ := w.store.Load(t.Context()); r.Holder != "b" {
			t.Errorf("the record is %+v", r)
		}
		together = w.together.Load()
		a.kill(true)
		a.bury()
		b.stop(errHalt)
		<-b.done
		b.leave()
	})
	return together
}

// The margin by which a grant ends early for its holder is for clocks that run at other rates.
func TestHostsWhoseClocksDifferByTheMarginNeverActTogether(t *testing.T) {
	for _, rates := range []map[string]float64{{"a": 1, "b": withinMargin}, {"a": withinMargin, "b": 1}, {"a": 0.5, "b": 0.5 * withinMargin}} {
		if n := succeeds(t, rates, 0); n != 0 {
			t.Errorf("with rates %v two act %d times", rates, n)
		}
	}
}

// The control: clocks that differ by more are seen to let two hosts act, if the cut comes where the holder
// has just been granted more time.
func TestHostsWhoseClocksDifferByMoreThanTheMarginAreSeenToActTogether(t *testing.T) {
	for _, rates := range []map[string]float64{{"a": 1, "b": 1.3}, {"a": 0.7, "b": 1}} {
		var seen int64
		for i := time.Duration(0); i < 10 && seen == 0; i++ {
			seen = succeeds(t, rates, i*330*time.Millisecond)
		}
		if seen == 0 {
			t.Errorf("with rates %v nobody sees that two act", rates)
		}
	}
}
