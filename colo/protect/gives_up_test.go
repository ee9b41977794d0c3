package protect

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// unheardBeats is a connection over which no heartbeat leaves while off says so.
type unheardBeats struct {
	net.Conn
	off *atomic.Bool
}

func (c unheardBeats) Write(b []byte) (int, error) {
	if len(b) == 1 && c.off.Load() {
		return 1, nil
	}
	return c.Conn.Write(b)
}

// beating returns a pair that is in step, in which no heartbeat of a leaves while off says so.
func (w *world) beating(off *atomic.Bool) (a, b *host) {
	w.t.Helper()
	b = w.boot("b", false, nil)
	a = w.boot("a", true, func(c *Config) {
		dialBy(c, func(conn net.Conn) net.Conn { return unheardBeats{conn, off} })
	})
	a.is(Protected)
	b.is(Following)
	return a, b
}

// A host that gives up the other one, which lives, tells it why, and that one tells its operator so, and
// not that the other has died.
func TestAHostThatGivesUpAnotherThatLivesTellsItWhy(t *testing.T) {
	bubble(t, "the beats of the primary are not heard", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		var off atomic.Bool
		a, b := w.beating(&off)
		alone := a.passes(Alone)
		a.slow.Store(int64(10 * time.Millisecond)) // what b says is heard before the arbiter's answer
		off.Store(true)
		<-alone
		off.Store(false)
		if err := a.job.Query().LastError; err == nil || !strings.HasPrefix(err.Error(), "b has ended the session: a was silent for 1s: ") {
			t.Error(err)
		}
		a.is(Protected)
		a.halt()
		b.halt()
	})
	bubble(t, "an operator says that the secondary is dead", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		a, b := w.protected()
		waits := b.passes(Waiting)
		if err := a.job.Fenced(); err != nil {
			t.Fatal(err)
		}
		<-waits
		b.saysWhy("a has ended the session: an operator there has said that b is dead, or can do nothing")
		a.is(Protected)
		a.halt()
		b.halt()
	})
	bubble(t, "the secondary is too slow", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		stuck, over := make(chan struct{}), make(chan struct{})
		var slow atomic.Bool
		b := w.boot("b", false, func(c *Config) {
			c.Session.Step = func(_ event.Mode, op string, _ uint64) {
				if op == "stage disks" && slow.CompareAndSwap(true, false) {
					close(stuck)
					<-over
				}
			}
		})
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		waits := b.passes(Waiting)
		slow.Store(true)
		<-stuck
		a.is(Alone)
		synctest.Wait() // b has heard why, on a connection of its own
		close(over)
		<-waits
		b.saysWhy("a has ended the session: b was too slow for a checkpoint")
		a.is(Protected)
		a.halt()
		b.halt()
	})
}

// saysWhy checks why the host has asked who goes on, as its operator is told.
func (h *host) saysWhy(words string) {
	h.w.t.Helper()
	asked := false
	for _, line := range strings.Split(h.reasons(), "\n") {
		if why, ok := strings.CutPrefix(line, "asking "); ok {
			asked = true
			if !strings.HasPrefix(why, words) {
				h.w.t.Error(line)
			}
		}
	}
	if !asked {
		h.w.t.Errorf("%s has not asked: %s", h.name, h.states())
	}
}
