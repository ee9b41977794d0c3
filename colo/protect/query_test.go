package protect

import (
	"testing"
	"time"
)

func TestQueryAnswersAtOnceWhileTheArbiterIsSlow(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.slow.Store(int64(2 * time.Second))
		w.f.part("a", "b", false)
		a.is(Asking)
		begin := time.Now()
		s := a.job.Query()
		if took := time.Since(begin); took != 0 || s.State != Asking || s.Generation == 0 {
			t.Errorf("after %v: %+v", took, s)
		}
		a.slow.Store(0)
		w.f.join("a", "b")
		a.is(Protected)
		b.is(Following)
		b.halt()
		a.halt()
	})
}
