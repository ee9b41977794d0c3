package compare_test

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// A clock that goes back behind the first time that the engine was told is no time that
// something else is taken for: what crosses then and meets is over.
func TestAClockSetBackBehindTheFirstPacketIsATime(t *testing.T) {
	for _, back := range []time.Duration{1, 2, time.Second, 24 * time.Hour} {
		x := newRig(t, compare.Config{Marks: true})
		x.checkpoint(0)
		x.Primary(udp("a"), x.now) // the first
		x.now = x.now.Add(-back)
		x.Secondary(udp("b"), x.now)
		x.want("the datagrams may be crossing", x.Primary(udp("b"), x.now), "b")
		x.want("they were", x.Secondary(udp("a"), x.now), "a")
		x.now = x.now.Add(back + 30*time.Millisecond)
		x.want("all have met", x.Tick(x.now), "")
	}
}
