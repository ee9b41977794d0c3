package protect

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A primary whose guest cannot be resumed after a checkpoint has nobody to go on with, and its secondary has
// a copy that can: the guest is left to it.
func TestASecondaryHasTheGuestOfAPrimaryThatCannotResumeIt(t *testing.T) {
	for _, compared := range []bool{false, true} {
		bubble(t, map[bool]string{false: "output waits", true: "output is compared"}[compared], func(t *testing.T, w *world) {
			w.guest.Interval, w.compared, w.ailing = 20*time.Millisecond, compared, true
			a, b := w.protected()
			time.Sleep(200 * time.Millisecond)
			a.ails.resume.Store(1 << 30)
			b.is(Alone)
			w.hearsMore()
			if said := a.reasons(); !strings.Contains(said, "guest cannot be resumed here") || !strings.Contains(said, errGuest.Error()) {
				t.Errorf("no change of its state says why:\n%s", said)
			}
			a.ails.resume.Store(0) // somebody has mended it
			b.is(Protected)
			a.is(Following)
			b.halt()
			a.halt()
		})
	}
}

// A hungResume is a guest whose Resume does not return before its context ends, while hangs says so.
type hungResume struct {
	Guest
	hangs *atomic.Bool
}

func (g hungResume) Resume(ctx context.Context) error {
	if g.hangs.Load() {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return g.Guest.Resume(ctx)
}

func TestASecondaryHasTheGuestOfAPrimaryWhoseResumeHangs(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		var hangs atomic.Bool
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { c.Guest = hungResume{c.Guest, &hangs} })
		a.is(Protected)
		b.is(Following)
		time.Sleep(200 * time.Millisecond)
		hangs.Store(true)
		b.is(Alone)
		w.hearsMore()
		hangs.Store(false)
		b.is(Protected)
		a.is(Following)
		b.halt()
		a.halt()
	})
}

// Where the secondary has just died, the primary has its guest back, and tries again.
func TestAPrimaryThatCouldNotResumeItsGuestTriesAgainWhereItsSecondaryHasDied(t *testing.T) {
	for _, silent := range []bool{false, true} {
		bubble(t, map[bool]string{false: "its connections end", true: "it falls silent"}[silent], func(t *testing.T, w *world) {
			w.guest.Interval, w.ailing = 20*time.Millisecond, true
			a, b := w.protected()
			time.Sleep(200 * time.Millisecond)
			a.on(Asking, func() { b.kill(silent) })
			a.ails.resume.Store(1)
			a.is(Alone)
			b.bury()
			w.hearsMore()
			a.halt()
		})
	}
}
