package protect

import (
	"strings"
	"testing"
	"time"
)

// A pair in step goes on while its arbiter is out of reach, also over a disk that has failed: the guest is brought
// away when somebody can be granted it. Before, it would stand still for as long as that takes.
func TestAGuestOverAFailedDiskIsBroughtAwayWhenTheArbiterAnswersAgain(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a := w.aloneOnAFailedDisk(nil)
		w.f.part("a", "b", false)
		b := w.boot("b", false, nil)
		a.on(Protected, func() {
			a.noArbiter.Store(true)
			b.noArbiter.Store(true)
			for !a.job.asked.away.Load() {
				time.Sleep(time.Millisecond)
			}
		})
		w.f.join("a", "b")
		w.until(func() bool {
			return strings.Contains(a.reasons(), "the switchover was given up: the arbiter does not answer")
		})
		session := a.job.session()
		time.Sleep(5 * w.term)
		if a.job.session() != session || !a.job.State().runs() {
			t.Fatalf("a is %v:\n%s", a.states(), a.reasons())
		}
		w.hearsMore()
		if n := strings.Count(a.states(), SwitchingOver.String()); n != 1 {
			t.Errorf("it has tried %d times while nobody could be granted the guest", n)
		}
		a.noArbiter.Store(false)
		b.noArbiter.Store(false)
		b.is(Alone)
		a.is(Waiting)
		if n := a.job.Query().Stats.Switchovers; n != 1 || a.job.Query().LastError == nil {
			t.Errorf("%d switchovers, %v:\n%s", n, a.job.Query().LastError, a.reasons())
		}
		b.halt()
		a.halt()
	})
}
