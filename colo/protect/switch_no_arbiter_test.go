package protect

import (
	"context"
	"strings"
	"testing"
	"time"
)

// A pair in step goes on while its arbiter is out of reach. Nobody could be granted a guest that is handed
// over then: the order is refused before the guest stands still for it, in the same session.
func TestASwitchoverIsRefusedWhileTheArbiterIsAway(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		session := a.job.session()
		for _, h := range []*host{a, b} {
			h.noArbiter.Store(true)
		}
		time.Sleep(2 * a.job.cfg.Term)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.job.Switchover(ctx); err == nil || !strings.Contains(err.Error(), "the guest runs on here: the arbiter does not answer") {
			t.Errorf("%v", err)
		}
		if a.job.State() != Protected || a.job.session() != session {
			t.Fatalf("a is %v, in the same session %v", a.states(), a.job.session() == session)
		}
		w.hearsMore()
		for _, h := range []*host{a, b} {
			h.noArbiter.Store(false)
		}
		time.Sleep(a.job.cfg.Term)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		b.is(Protected)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}
