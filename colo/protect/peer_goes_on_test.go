package protect

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Nobody is asked who goes on, and the word that the other host runs the guest is lost: that it
// seeks a secondary says so as well.
func TestAHostWithoutAnArbiterFollowsTheOneThatItHasToldToGoOn(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, _, met := committer(w, func(c *Config) { c.Arbiter = nil }, func(a, b *host) error {
			w.f.part("a", "b", false)
			time.Sleep(time.Second) // it is noticed in the commit
			return nil
		})
		done := make(chan error, 1)
		go func() { done <- a.job.Switchover(t.Context()) }()
		b.is(Alone)
		if !met.Load() {
			t.Error("it was not told before it had committed the last checkpoint")
		}
		w.hearsMore()
		w.f.join("a", "b")
		b.is(Protected)
		a.is(Following)
		if err := <-done; err == nil || !strings.Contains(err.Error(), "this host is waiting") {
			t.Errorf("%v", err) // nobody has said so while it was under way
		}
		w.andBack(a, b)
	})
}

// An operator says on the secondary that it goes on: nobody need say anything on the primary.
func TestAHostWithoutAnArbiterFollowsTheOneThatAnOperatorHasGoOn(t *testing.T) {
	for name, verb := range map[string]func(*Job) error{"failover": (*Job).Failover, "fenced": (*Job).Fenced} {
		bubble(t, name, func(t *testing.T, w *world) {
			none := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			a.is(Protected)
			b.is(Following)
			w.f.part("a", "b", false)
			a.is(Asking)
			b.is(Asking)
			a.job.keeper.Drop() // the operator makes sure that nothing leaves here
			synctest.Wait()     // a frame may be on its way
			if err := verb(b.job); err != nil {
				t.Fatal(err)
			}
			b.is(Alone)
			w.hearsMore()
			if s := a.job.State(); s != Asking {
				t.Errorf("a has heard nothing, and is %v", s)
			}
			w.f.join("a", "b")
			b.is(Protected)
			a.is(Following)
			w.andBack(a, b)
		})
	}
}

// A primary that stands still gives its guest to nobody but the host that has it.
func TestAPrimaryIsNotOvertakenByAnotherGuest(t *testing.T) {
	for _, c := range []struct {
		name    string
		arbiter bool
		change  func(*hello)
		gives   bool
	}{
		{"by the host that has taken over in its session", false, func(*hello) {}, true},
		{"by one that was started anew", false, func(h *hello) { h.TookOver = "" }, false},
		{"by one that has taken over in another session", false, func(h *hello) { h.TookOver += "x" }, false},
		{"in its own generation", false, func(h *hello) { h.Generation-- }, false},
		{"by a host of another name", false, func(h *hello) { h.Host = "c" }, false},
		{"on another channel", false, func(h *hello) { h.Channel = chSession }, false},
		{"by the host that has taken over, where there is an arbiter", true, func(*hello) {}, true},
		{"by one that was started anew, where there is an arbiter", true, func(h *hello) { h.TookOver = "" }, false},
		{"in its own generation, where there is an arbiter", true, func(h *hello) { h.Generation-- }, false},
	} {
		bubble(t, c.name, func(t *testing.T, w *world) {
			change := func(cfg *Config) {
				if !c.arbiter {
					cfg.Arbiter = nil
				}
			}
			b := w.boot("b", false, change)
			a := w.boot("a", true, change)
			a.is(Protected)
			b.is(Following)
			p := a.job.session().peer
			h := hello{Channel: chControl, Guest: "guest", Generation: p.generation + 1, Host: "b", TookOver: p.token, Offer: b.job.offer()}
			a.noArbiter.Store(true)
			b.kill(false)
			b.bury()
			a.is(Asking)
			c.change(&h)
			b.killed.Store(false) // whoever comes now comes from where it was
			_, _, err := dial(t.Context(), &b.job.cfg, h)
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Reason != "a is asking" {
				t.Errorf("%v", err)
			}
			synctest.Wait()
			if s := a.job.State(); c.gives != (s == Waiting) || !c.gives && s != Asking {
				t.Errorf("a is %v", s)
			}
			if a.job.Gate().Open() && c.gives {
				t.Error("the gate is open")
			}
			a.noArbiter.Store(false)
			if c.arbiter && !c.gives {
				a.is(Alone)
			}
			a.halt()
		})
	}
}
