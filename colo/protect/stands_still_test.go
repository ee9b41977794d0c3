package protect

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
)

// Two hosts that have lost each other stand still until an operator's word. He may say it to
// either, so nothing leaves the other: not what a switch learns the guest's place from either.
func TestNothingLeavesAHostThatWaitsForAnOperatorsWord(t *testing.T) {
	for _, goesOn := range []string{"the one that had the guest", "the other"} {
		bubble(t, goesOn+" goes on", func(t *testing.T, w *world) {
			none := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			a.is(Protected)
			b.is(Following)
			time.Sleep(300 * time.Millisecond)
			w.f.part("a", "b", false)
			a.is(Asking)
			b.is(Asking)
			for _, h := range []*host{a, b} {
				if q := h.job.Query(); h.job.Gate().Open() || q.Open {
					t.Errorf("the gate of %s, which waits for an operator's word, is open", h.name)
				}
			}
			// A promise that was under way when the link was lost is heard now.
			a.job.keeper.Promised(a.job.keeper.Generation(), time.Now(), time.Minute)
			if a.job.Gate().Open() {
				t.Error("a promise has opened it")
			}
			one, other := a, b
			if goesOn == "the other" {
				one, other = b, a
			}
			if err := one.job.Failover(); err != nil {
				t.Fatal(err)
			}
			one.is(Alone)
			w.hearsMore()
			if other.job.Gate().Open() {
				t.Errorf("the gate of %s is open as well", other.name)
			}
			w.f.join("a", "b")
			one.is(Protected)
			other.is(Following)
			one.halt()
			other.halt()
		})
	}
}

// A host that has taken over tells the network so for a while. It says no more of that when it
// stands still again, whoever may be told to go on.
func TestAHostThatWaitsForAnOperatorsWordAnnouncesNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 5 * time.Millisecond
		w.compared = true
		slowly := func(c *Config) {
			c.Arbiter = nil
			p := c.Network[0].(pacedProxy)
			p.cfg.Announce = proxy.AnnounceConfig{Rounds: 20, Initial: time.Second, Step: time.Millisecond, Max: time.Second}
		}
		b := w.boot("b", false, slowly)
		a := w.boot("a", true, slowly)
		a.is(Protected)
		b.is(Following)
		w.hearsMore()
		time.Sleep(300 * time.Millisecond)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		a.is(Following)
		w.f.part("a", "b", false)
		a.is(Asking)
		b.is(Asking)
		time.Sleep(time.Second)
		w.announced.Store(0)
		time.Sleep(time.Minute)
		if n := w.announced.Load(); n > 0 {
			t.Errorf("%d frames say where the guest is, which stands still", n)
		}
		if err := b.job.Failover(); err != nil {
			t.Fatal(err)
		}
		b.is(Alone)
		time.Sleep(2 * time.Second)
		if w.announced.Load() == 0 {
			t.Error("the host that went on has not said so to the end")
		}
		b.halt()
		a.halt()
	})
}
