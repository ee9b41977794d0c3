package protect

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A pair whose control connection alone has ended goes on, says what it lacks, and makes it
// again; one whose session ends with all its connections says nothing of that one.
func TestAControlConnectionThatEndsAloneIsToldAndMadeAgain(t *testing.T) {
	told := func(h *host) bool {
		err := h.job.Query().LastError
		return err != nil && strings.Contains(err.Error(), "control connection")
	}
	bubble(t, "alone", func(t *testing.T, w *world) {
		w.f.flow = breakOnce(0, false, 9, false)
		b := w.boot("b", false, nil)
		synctest.Wait() // b is there for the first connection, which is the one that breaks
		a := w.boot("a", true, nil)
		time.Sleep(12 * time.Second)
		a.is(Protected)
		b.is(Following)
		if !told(a) || !told(b) {
			t.Errorf("a says %v, b says %v", a.job.Query().LastError, b.job.Query().LastError)
		}
		promised(t, a, b)
		session := a.job.session()
		if err := a.job.Switchover(t.Context()); err != nil || !session.handed {
			t.Errorf("in the session in which it was made again: %v", err)
		}
		b.is(Protected)
		a.is(Following)
		a.halt()
		b.halt()
	})
	bubble(t, "with the others", func(t *testing.T, w *world) {
		var away atomic.Bool
		w.store.Before = func(context.Context, string) error {
			if away.Load() {
				return errDead
			}
			return nil
		}
		a, b := w.protected()
		away.Store(true) // so that it is not settled for long who goes on
		time.AfterFunc(10*time.Second, func() { away.Store(false) })
		a.kill(false)
		a.bury()
		b.is(Asking)
		time.Sleep(5 * time.Second)
		if told(b) {
			t.Error(b.job.Query().LastError)
		}
		b.is(Alone)
		if told(b) {
			t.Error(b.job.Query().LastError)
		}
		b.halt()
	})
}
