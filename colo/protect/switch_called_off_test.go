package protect

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// An operator gives up a switchover that waits for a slow checkpoint, before the other host has heard
// of it. That ends no session, and the next switchover is made as if there had been none.
func TestASwitchoverThatIsGivenUpWhileTheGuestRunsLeavesThePairProtected(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		slow := &slowly{each: time.Second}
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { c.Guest = slowGuest{c.Guest.(*colotest.VM), slow} })
		a.is(Protected)
		b.is(Following)
		session := a.job.session()
		for _, verb := range []func(context.Context) error{a.job.Switchover, a.job.Migrate} {
			slow.on.Store(true)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			begun := time.Now()
			err := verb(ctx)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 200*time.Millisecond {
				t.Errorf("given up after %v: %v", time.Since(begun), err)
			}
			slow.on.Store(false)
			if q := a.job.Query(); q.State != Protected || a.job.session() != session || !strings.HasSuffix(q.Reason, " was given up: context deadline exceeded") {
				t.Errorf("a is %v: %s, in the same session %v", q.State, q.Reason, a.job.session() == session)
			}
			before, _ := session.committed()
			time.Sleep(5 * time.Second)
			if now, _ := session.committed(); a.job.session() != session || now < before+5 {
				t.Errorf("after checkpoint %d comes %d, in the same session %v", before, now, a.job.session() == session)
			}
			w.hearsMore()
		}
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}
