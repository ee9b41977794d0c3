package protect

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

// A first synchronisation is cut off when the secondary may have all of it, and has not. The
// primary stands still then, and nobody but the secondary knows.
func TestAPrimaryWithoutAnArbiterGoesOnWhenItsSecondaryHasNothing(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
		cut := make(chan struct{})
		b := w.boot("b", false, func(c *Config) { c.Arbiter = nil })
		a := w.boot("a", true, func(c *Config) {
			c.Arbiter = nil
			c.Session.Step = func(side event.Mode, op string, epoch uint64) {
				select {
				case <-cut:
				default:
					if op == "expect checkpoint-ready" {
						w.f.ways.quiet("a", "b")
						close(cut)
					}
				}
			}
		})
		<-cut
		a.is(Asking)
		b.is(Waiting)
		before := w.heard()
		time.Sleep(time.Minute)
		if a.job.State() != Asking || w.heard() != before {
			t.Errorf("a is %v, and nobody has said anything", a.job.State())
		}
		w.f.ways.mend(true)
		a.is(Protected)
		b.is(Following)
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// The primary loses its secondary by the session's connection alone: all others are well, and so
// the secondary hears nothing of that. Then it is asked, and so it hears it. If it has no whole copy
// the primary goes on; otherwise both stand still, and an operator can say who goes on.
func TestASecondaryThatIsAskedHearsThatTheSessionIsLost(t *testing.T) {
	for _, whole := range []bool{false, true} {
		bubble(t, fmt.Sprint("whole ", whole), func(t *testing.T, w *world) {
			w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
			var cut atomic.Bool
			none := func(c *Config) {
				c.Arbiter, c.CheckpointTimeout = nil, 500*time.Millisecond
				c.Session.Step = func(side event.Mode, op string, epoch uint64) {
					if side == event.ModePrimary && op == "expect checkpoint-ready" && !whole && !cut.Swap(true) {
						w.f.ways.silenceChannel(chSession, 3)
					}
				}
			}
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			if whole {
				a.is(Protected)
				b.is(Following)
				w.f.ways.silenceChannel(chSession, 3)
			}
			a.is(Asking)
			if whole {
				b.is(Asking)
				time.Sleep(time.Minute)
				if a.job.State() != Asking || b.job.State() != Asking {
					t.Errorf("a is %v and b is %v, though nobody has said anything", a.job.State(), b.job.State())
				}
				if err := a.job.Failover(); err != nil {
					t.Error(err)
				}
			}
			a.is(Protected)
			b.is(Following)
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}

// Who has a whole copy, is asked for another session, by another host, or knows of a later
// generation, does not say that the session is over.
func TestOnlyAHostThatHasLeftASessionSaysThatItIsOver(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		none := func(c *Config) { c.Arbiter = nil }
		b := w.boot("b", false, none)
		a := w.boot("a", true, none)
		a.is(Protected)
		b.is(Following)
		first := a.job.session().peer
		over := func(from, token string) bool {
			t.Helper()
			q := w.question("a", "b")
			conn, answer, err := dial(t.Context(), &Config{Peer: q}, hello{Channel: chAsk, Guest: "guest", Host: from, Token: token})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			return answer.Over
		}
		if over("a", first.token) {
			t.Error("a session that is not over")
		}
		w.f.part("a", "b", true)
		a.is(Asking)
		b.is(Asking)
		w.f.join("a", "b")
		if over("a", first.token) {
			t.Error("a session from which b may go on")
		}
		time.Sleep(time.Minute)
		if a.job.State() != Asking || b.job.State() != Asking {
			t.Errorf("a is %v, b %v: nobody has said anything", a.job.State(), b.job.State())
		}
		if err := a.job.Failover(); err != nil {
			t.Fatal(err)
		}
		a.is(Protected)
		b.is(Following)
		if !over("a", first.token) {
			t.Error("b follows again, and has left the session before")
		}
		if over("c", first.token) || over("a", "another") || over("a", "") {
			t.Error("that of another host, another session, or none")
		}
		b.halt()
		a.halt()
	})
	p := newPeer(hello{Host: "b", Generation: 4})
	for _, h := range []hello{{Host: "b", Generation: 4}, {Host: "c", Generation: 4, Over: true}, {Host: "b", Generation: 5, Over: true}} {
		if p.saysOver(h) || p.ended {
			t.Errorf("%+v", h)
		}
	}
	if !p.saysOver(hello{Host: "b", Generation: 4, Over: true}) || p.endedWhy() == nil {
		t.Error("a word that counts")
	}
}

// A first synchronisation is cut off at any moment, where an operator is the arbiter, who is asked
// only where both hosts have a guest to go on with. One of the two goes on, and the other
// follows it when they reach each other again.
func TestAFirstSynchronisationWithoutAnArbiterIsCutOffAtAnyMoment(t *testing.T) {
	for seed := range require.Many[uint64](6, 30, 200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		bubble(t, fmt.Sprint(seed), func(t *testing.T, w *world) {
			w.guest.Interval = 20 * time.Millisecond
			w.f.ways = newWays(w.newest, func() time.Duration { return time.Millisecond })
			none := func(c *Config) { c.Arbiter = nil }
			b := w.boot("b", false, none)
			a := w.boot("a", true, none)
			a.passed(Synchronising)
			time.Sleep(time.Duration(rng.IntN(12_000)) * time.Microsecond)
			silent := rng.IntN(3) > 0
			if silent {
				one, other := "a", "b"
				if rng.IntN(3) == 0 {
					one, other = other, one
				}
				w.f.ways.quiet(one, other)
				if rng.IntN(2) == 0 {
					w.f.ways.quiet(other, one)
				}
			} else {
				w.f.ways.part("a", "b")
			}
			time.Sleep(20 * time.Second)
			if !silent || rng.IntN(2) == 0 {
				w.f.ways.mend(true)
				time.Sleep(10 * time.Second)
			}
			if a.job.State() == Asking && b.job.State() == Asking {
				chosen, other := a, b
				if rng.IntN(2) == 0 {
					chosen, other = b, a
				}
				other.job.keeper.Drop() // the operator sees to it that nothing leaves there
				if err := chosen.job.Failover(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
			w.f.ways.mend(true)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var got []State
			for _, h := range []*host{a, b} {
				s, err := h.job.Wait(ctx, Protected, Following)
				if err != nil {
					t.Errorf("%s is %v: %s", h.name, s, h.states())
				}
				got = append(got, s)
			}
			if !slices.Contains(got, Protected) || !slices.Contains(got, Following) {
				t.Errorf("a is %v, b is %v", got[0], got[1])
			} else {
				w.hearsMore()
			}
			a.halt()
			b.halt()
		})
	}
}

// Two hosts without an arbiter have lost each other, and an operator lets one go on, which does not
// seek the other: its protection is paused, or cancelled. The other hears that when the link is back,
// and asks the operator no more, who might say yes to it as well.
func TestAHostWithoutAnArbiterHearsThatTheOtherGoesOnAndSeeksNobody(t *testing.T) {
	for _, goesOn := range []string{"a", "b"} {
		for _, verb := range []string{"pause", "cancel"} {
			bubble(t, goesOn+" "+verb, func(t *testing.T, w *world) {
				none := func(c *Config) { c.Arbiter = nil }
				hosts := map[string]*host{"b": w.boot("b", false, none), "a": w.boot("a", true, none)}
				one, other := hosts[goesOn], hosts[w.other(goesOn)]
				hosts["a"].is(Protected)
				hosts["b"].is(Following)
				w.f.part("a", "b", false)
				one.is(Asking)
				other.is(Asking)
				time.Sleep(time.Millisecond) // nobody decides in the instant of the loss, in which a frame may be on its way
				if err := one.job.Failover(); err != nil {
					t.Fatal(err)
				}
				one.is(Alone)
				do := one.job.Cancel
				if verb == "pause" {
					do = func(ctx context.Context) error { return one.job.Pause(ctx, "") }
				}
				if err := do(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if s := other.job.State(); s != Asking {
					t.Errorf("%s is %v, and has heard nothing", other.name, s)
				}
				w.f.join("a", "b")
				other.is(Waiting)
				w.hearsMore()
				if verb == "pause" {
					if err := one.job.Resume(); err != nil {
						t.Fatal(err)
					}
					one.is(Protected)
					other.is(Following)
				}
				other.halt()
				one.halt()
			})
		}
	}
}
