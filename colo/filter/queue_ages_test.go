package filter

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A packet's date is never too late, and too early by at most a hundredth of how long
// the oldest beside it has waited, or by the finest step.
func TestADateIsAtMostAHundredthTooEarly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, gap := range []time.Duration{time.Microsecond, 30 * time.Microsecond, time.Millisecond, time.Second} {
		var d dates
		now := time.Unix(1000, 0)
		var queue, oldest []time.Time // when they came, and since when the oldest beside them had waited at most
		for range 20000 {
			if rnd.IntN(3) > 0 || len(queue) == 0 {
				now = now.Add(time.Duration(rnd.Int64N(int64(2 * gap))))
				if rnd.IntN(100) == 0 {
					now = now.Add(50 * gap)
				}
				if len(queue) == 0 {
					oldest = oldest[:0]
				}
				d.push(now)
				queue = append(queue, now)
				oldest = append(oldest, queue[0])
				continue
			}
			got, want := d.pop(), queue[0]
			span := now.Sub(oldest[0])
			if early := want.Sub(got); early < 0 || early > max(nearest, span/100) {
				t.Fatalf("packets %v apart: %v too early, where the oldest had waited %v", gap, early, span)
			}
			queue, oldest = queue[1:], oldest[1:]
		}
		if d.n > maxDates {
			t.Fatal(d.n)
		}
	}
}

// A clock that is set back does not confuse whose date is whose.
func TestAClockThatIsSetBackLeavesAsManyDatesAsPackets(t *testing.T) {
	var d dates
	at := time.Unix(1000, 0)
	for i := range 2000 {
		if at = at.Add(time.Millisecond); i == 1000 {
			at = at.Add(-time.Hour)
		}
		d.push(at)
	}
	for range 2000 {
		d.pop()
	}
	if d.n != 0 {
		t.Errorf("%d dates of no packet", d.n)
	}
}
