package protect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// Each of the three connections of a pair breaks, or falls silent, at each of its
// operations: while it is greeted, while the guest is synchronised, in checkpoints.
// The guest goes on on one host, the client does not notice, and the pair comes to
// be in step again.
func TestConnectionsBreakAtEveryOperation(t *testing.T) {
	at := require.Many([]int64{9}, []int64{1, 3, 9, 22}, []int64{0, 1, 2, 3, 4, 6, 9, 14, 22, 40})
	for _, stall := range []bool{false, true} {
		for connection := range int64(3) {
			for _, back := range []bool{false, true} {
				if testing.Short() && stall == back {
					continue
				}
				for _, n := range at {
					name := fmt.Sprintf("connection %d, back %v, read %d, stall %v", connection, back, n, stall)
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t)
						w.guest.Interval = 20 * time.Millisecond
						w.f.flow = breakOnce(connection, back, n, stall)
						b := w.boot("b", false, nil)
						a := w.boot("a", true, nil)
						time.Sleep(12 * time.Second) // longer than anything waits
						a.is(Protected)
						b.is(Following)
						before := w.heard()
						time.Sleep(300 * time.Millisecond)
						if w.heard() == before {
							t.Errorf("%s: the guest stands still", name)
						}
						b.halt()
						a.halt()
						w.clean()
						if t.Failed() {
							t.Fatal(name)
						}
					})
				}
			}
		}
	}
}

// breakOnce makes the one connection of that number break, in one of its
// directions, at that read.
func breakOnce(connection int64, back bool, n int64, stall bool) func(string, string) (colotest.Flow, colotest.Flow) {
	var made atomic.Int64
	return func(string, string) (there, backward colotest.Flow) {
		if made.Add(1)-1 != connection {
			return
		}
		f := &there
		if back {
			f = &backward
		}
		if p := (colotest.Point{Op: colotest.Read, N: n}); stall {
			f.Stall = p
		} else {
			f.Break = p
		}
		return
	}
}

// undescribed is a guest whose devices take a while to be named.
type undescribed struct {
	*colotest.VM
	known <-chan struct{}
}

func (g undescribed) Register(reg *vmstate.Registry) error {
	<-g.known
	return g.VM.Register(reg)
}

// A host that does not know yet what its guest has does not say that something lacks there.
func TestAHostThatHasNotBegunIsNotTakenForOneThatDoesNotFit(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		known := make(chan struct{})
		b := w.boot("b", false, func(c *Config) { c.Guest = undescribed{c.Guest.(*colotest.VM), known} })
		a := w.boot("a", true, nil)
		time.Sleep(5 * time.Second)
		var r *RefusedError
		if err := a.job.Query().LastError; !errors.As(err, &r) || r.Reason != "b is created" {
			t.Errorf("%v", err)
		}
		close(known)
		a.is(Protected)
		b.is(Following)
		a.halt()
		b.halt()
	})
}

func TestHostsThatDoNotFitAreRefusedInWords(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
		there  int // how often the host that waits tells its own operator
	}{
		"machine": {func(c *Config) { c.Machine = "q35" }, `"q35"`, 1},
		"judge":   {func(c *Config) { c.Judge = func(o []byte) error { return fmt.Errorf("no avx512 in %q", o) } }, "no avx512", 1},
		"name":    {func(c *Config) { c.Host = "a" }, "both hosts", 0},
		"guest":   {func(c *Config) { c.Name = "other" }, "no guest", 0},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			b := w.boot("b", false, c.change)
			a := w.boot("a", true, func(c *Config) { c.Offer = []byte("avx2") })
			time.Sleep(10 * time.Second)
			q := a.job.Query()
			var r *RefusedError
			if q.State != Alone || !errors.As(q.LastError, &r) || !strings.Contains(r.Reason, c.want) {
				t.Errorf("%v: %v", q.State, q.LastError)
			}
			if b.job.State() != Waiting {
				t.Errorf("b is %v", b.job.State())
			}
			told := said[event.ProtectionRefused](b)
			if len(told) != c.there {
				t.Fatalf("b tells %+v, want %d refusals", told, c.there)
			}
			if err := b.job.Query().LastError; len(told) > 0 && (told[0].Mode != event.ModeSecondary || err == nil ||
				err.Error() != told[0].Error || !strings.Contains(told[0].Error, c.want) || !strings.Contains(told[0].Error, `"a" is turned away`)) {
				t.Errorf("b tells %+v, and has %v", told, err)
			}
			b.halt()
			a.halt()
		})
	}
}

// A fencer runs with the grant and before the guest, as often as it fails.
func TestFencerRunsBeforeTheGuestDoes(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		f := &fencer{fails: 5}
		b := w.boot("b", false, func(c *Config) { c.Fencer = f })
		a := w.boot("a", true, func(c *Config) { c.Fencer = f })
		f.before = func(generation uint64) {
			w.mu.Lock()
			last := w.last
			w.mu.Unlock()
			if b.job.State() != Asking || generation != 2 || last != "a" || b.job.Gate().Open() {
				t.Errorf("%v, generation %d, the last frame is from %q, the gate is open: %v", b.job.State(), generation, last, b.job.Gate().Open())
			}
			if f.calls > 0 {
				time.Sleep(2 * w.term) // renewals come meanwhile, and do not open it
			}
		}
		a.is(Protected)
		w.hearsMore()
		a.kill(true)
		a.bury()
		b.is(Alone)
		if f.calls != 6 {
			t.Errorf("%d calls", f.calls)
		}
		b.halt()
	})
}

// A host that is handed the guest cuts nobody's power: the other one has let it go, and is to follow.
func TestAHostThatIsHandedTheGuestFencesNobody(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		f := &fencer{before: func(uint64) {}}
		b := w.boot("b", false, func(c *Config) { c.Fencer = f })
		a := w.boot("a", true, func(c *Config) { c.Fencer = f })
		a.is(Protected)
		b.is(Following)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.is(Protected)
		w.hearsMore()
		if f.calls > 0 {
			t.Errorf("%d calls", f.calls)
		}
		a.halt()
		b.halt()
	})
}

type fencer struct {
	fails, calls int
	before       func(generation uint64)
}

func (f *fencer) Fence(_ context.Context, generation uint64) error {
	f.before(generation)
	if f.calls++; f.calls <= f.fails {
		return errors.New("the switch does not answer")
	}
	return nil
}

func TestJobRunsOnce(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", true, nil)
		a.is(Alone)
		if err := a.job.Run(t.Context()); err == nil {
			t.Error("a second Run")
		}
		a.halt()
		if err := a.job.Run(t.Context()); err == nil {
			t.Error("a second Run after the first")
		}
	})
}

func TestNetworkThatFailsGivesTheGuestToTheOtherHost(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.once.Do(func() { close(a.dead) }) // its uplink ends
		<-a.done
		if !errors.Is(a.err, errDead) {
			t.Error(a.err)
		}
		a.leave()
		b.is(Alone)
		before := w.heard()
		time.Sleep(time.Second)
		if w.heard() == before {
			t.Error("nothing leaves")
		}
		b.halt()
	})
}

func TestEveryChangeOfStateIsAnEvent(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		b.halt()
		a.is(Alone)
		a.mu.Lock()
		var last event.JobStatusChange
		for _, e := range a.events {
			if c, ok := e.(event.JobStatusChange); ok {
				last = c
			}
		}
		a.mu.Unlock()
		if last.ID != "guest" || last.Status != "running" || last.State != "alone" || last.Generation != 2 {
			t.Errorf("%+v", last)
		}
		a.halt()
	})
}

// The last change of state, which the end of its context makes, is no exception.
func TestWhoHearsOfAChangeOfStateHearsItBeforeRunReturns(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var heard atomic.Bool
		a := w.boot("a", true, func(c *Config) {
			c.Events.SubscribeAll(func(r event.Record) {
				if e, ok := r.Event.(event.JobStatusChange); ok && e.State == Concluded.String() {
					time.Sleep(time.Second) // it writes it down
					heard.Store(true)
				}
			})
		})
		a.is(Alone)
		synctest.Wait() // that has been told, too: who comes next would wait for the first
		a.stop(errHalt)
		<-a.done
		if !heard.Load() {
			t.Error("Run has returned, and somebody is still being told")
		}
		a.leave()
	})
}

func TestSynchronisationSaysHowFarItIs(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Memory = 8 << 20
		var a *host // before there is a secondary whose session could ask for it
		seen := make(chan *Progress, 1)
		a = w.boot("a", true, func(c *Config) {
			c.Events.SubscribeAll(func(r event.Record) {
				if _, ok := r.Event.(event.MigrationPass); ok {
					select {
					case seen <- a.job.Query().Progress:
					default:
					}
				}
			})
		})
		b := w.boot("b", false, nil)
		p := <-seen
		if p == nil || p.Total != 8<<20 || p.Remaining > p.Total {
			t.Errorf("%+v", p)
		}
		a.is(Protected)
		if a.job.Query().Progress != nil {
			t.Error("it goes on after the end")
		}
		b.halt()
		a.halt()
	})
}

// Whoever comes with an old generation, or with a token of another pair, gets
// nowhere, on any channel.
func TestOldGenerationGetsNowhere(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", false, nil)
		a.is(Waiting)
		a.job.learn(4)
		cfg := &Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, "b", "a") }}}
		for _, channel := range []string{chControl, chSession, chHeartbeat, chDisk + "root", "what"} {
			for generation, want := range map[uint64]string{3: "generation 3 is over", 4: "no pair"} {
				if channel == chControl && generation == 4 {
					continue // which is welcome
				}
				conn, _, err := dial(t.Context(), cfg, hello{Channel: channel, Guest: "guest", Generation: generation, Host: "b", Token: "guessed", Offer: a.job.offer()})
				var r *RefusedError
				if !errors.As(err, &r) || !strings.Contains(r.Reason, want) {
					t.Errorf("%s of generation %d: %v", channel, generation, err)
				}
				if err == nil {
					conn.Close()
				}
			}
		}
		a.halt()
	})
}

// Whoever reaches the port while a pair is being made gets none of its connections without the
// token that the primary was given.
func TestAConnectionOfAPairNeedsItsToken(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a := w.boot("a", false, nil)
		a.is(Waiting)
		cfg := &Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(ctx context.Context) (net.Conn, error) { return w.f.dial(ctx, "b", "a") }}}
		first := hello{Channel: chControl, Guest: "guest", Generation: 1, Host: "b", Offer: a.job.offer()}
		control, answer, err := dial(t.Context(), cfg, first)
		if err != nil {
			t.Fatal(err)
		}
		defer control.Close()
		for _, channel := range []string{chSession, chHeartbeat, chDisk + "root"} {
			for name, change := range map[string]func(*hello){
				"no token":           func(h *hello) { h.Token = "" },
				"another token":      func(h *hello) { h.Token += "x" },
				"another generation": func(h *hello) { h.Generation++ },
			} {
				h := hello{Channel: channel, Guest: "guest", Generation: 1, Host: "b", Token: answer.Token}
				change(&h)
				conn, _, err := dial(t.Context(), cfg, h)
				var refused *RefusedError
				if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "belongs to no pair") {
					t.Errorf("%s with %s: %v, %v", channel, name, conn, err)
				}
			}
		}
		beat, _, err := dial(t.Context(), cfg, hello{Channel: chHeartbeat, Guest: "guest", Generation: 1, Host: "b", Token: answer.Token})
		if err != nil {
			t.Fatalf("with all of it: %v", err)
		}
		beat.Close()
		a.halt()
	})
}
