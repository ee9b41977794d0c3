package protect

import (
	"testing"
	"time"
)

// A host that was cut off from all, and reaches the host that has taken over before it reaches its
// arbiter, follows: else the guest would run unprotected for as long as the arbiter is away.
func TestAHostFollowsTheOneThatHasTakenOverThoughItReachesNoArbiter(t *testing.T) {
	for _, silent := range []bool{false, true} {
		bubble(t, map[bool]string{false: "connections break", true: "connections fall silent"}[silent], func(t *testing.T, w *world) {
			w.guest.Interval = 10 * time.Millisecond
			a, b := w.protected()
			a.noArbiter.Store(true)
			w.f.part("a", "b", silent)
			b.is(Alone)
			a.is(Asking)
			w.f.join("a", "b")
			b.is(Protected)
			a.is(Following)
			if r, err := a.job.cfg.Arbiter.Record(t.Context()); err == nil {
				t.Errorf("its arbiter says %+v", r)
			}
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}
