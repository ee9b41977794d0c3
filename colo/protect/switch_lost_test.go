package protect

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The connection that carries the order to go on falls silent, and the others do not: the
// other host never hears it, and this one never that it has not. Where the other host is asked first whether its arbiter
// answers, the order is not given.
func TestASwitchoverWhoseOrderIsNotHeardIsGivenUp(t *testing.T) {
	for _, kind := range []string{"switchover", "migrate", "switchover, asked first", "migrate, asked first"} {
		verb, _, asked := strings.Cut(kind, ", ")
		bubble(t, kind, func(t *testing.T, w *world) {
			if w.guest.Interval = 20 * time.Millisecond; !asked {
				w.heeds = []string{}
			}
			w.f.flow = breakOnce(0, false, 9, true)
			b := w.boot("b", false, nil)
			synctest.Wait() // b is there for the first connection, which is the one that breaks
			a := w.boot("a", true, nil)
			a.is(Protected)
			b.is(Following)
			// No promise is heard any more, and that has not been noticed yet.
			for p, over := b.job.session().peer, false; !over; {
				time.Sleep(20 * time.Millisecond)
				p.get(func() { over = !p.pledge.IsZero() && time.Now().After(p.pledge) })
			}
			a.is(Protected)
			b.is(Following)
			begun := time.Now()
			change := a.job.Switchover
			if verb == "migrate" {
				change = a.job.Migrate
			}
			session, err := a.job.session(), change(t.Context())
			if asked {
				if err == nil || !strings.Contains(err.Error(), "the guest runs on here: the arbiter does not answer b as far as is known: that host has not said") {
					t.Errorf("%v", err)
				}
				if a.job.State() != Protected || a.job.session() != session {
					t.Errorf("a is %v, in the same session %v", a.states(), a.job.session() == session)
				}
				w.hearsMore()
				a.halt()
				b.halt()
				return
			}
			if err == nil || !strings.Contains(err.Error(), "b has not answered") {
				t.Errorf("%v", err)
			}
			if d := time.Since(begun); d > 2*a.job.cfg.PeerTimeout {
				t.Errorf("the guest stood still for %v", d)
			}
			// The guest had been released, and b, whose primary has left it, has claimed it.
			b.is(Protected)
			a.is(Following)
			w.hearsMore()
			if err := b.job.Switchover(t.Context()); err != nil {
				t.Errorf("the next: %v", err)
			}
			a.is(Protected)
			a.halt()
			b.halt()
		})
	}
}
