package colo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/vmstate"
)

// afterCheckpoint runs a pair with a checkpoint each second and calls do once
// checkpoint n is whole.
func afterCheckpoint(t *testing.T, ctx context.Context, n uint64, o options, do func(*pair)) *pair {
	t.Helper()
	primary := o.primary
	o.primary = func(c *colo.PrimaryConfig) {
		c.CheckpointDelay = time.Second
		if primary != nil {
			primary(c)
		}
	}
	x := newPair(t, o)
	reached := make(chan struct{})
	event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		x.p.step(2)
		if c.Epoch == n {
			close(reached)
		}
	})
	event.Subscribe(&x.s.bus, func(c event.CheckpointCommit) { x.s.step(1) })
	x.start(ctx)
	<-reached
	synctest.Wait()
	do(x)
	return x
}

func TestAnOrderIsAClaim(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
					_, r := x.side(mode)
					if err := r.Failover(); err != nil {
						t.Error(err)
					}
				})
				x.wait()
				h, _ := x.side(mode)
				o, _ := x.side(other(mode))
				claims := x.witness.Claims()
				if len(claims) == 0 || claims[0].Mode != mode || !claims[0].Ordered || !errors.Is(claims[0].Cause, colo.ErrFailover) {
					t.Errorf("the arbiter was asked %+v, want the order first", claims)
				}
				if h.err != nil || !errors.Is(o.err, colo.ErrRefused) {
					t.Errorf("the side with the order ended with %v, the other with %v", h.err, o.err)
				}
				if x.wantWhole(t) != h {
					t.Errorf("the %s does not run", mode)
				}
				x.close()
			})
		})
	}
}

func TestAnOrderThatIsRefusedIsNotCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
			refuse(event.ModeSecondary)(x)
			if err := x.secondary.Failover(); err != nil {
				t.Error(err)
			}
		})
		x.wait()
		if !errors.Is(x.s.err, colo.ErrRefused) || x.secondary.Status() != failover.None || x.secondary.Info().State != colo.StateStopped {
			t.Errorf("the secondary ended with %v, status %v, state %v", x.s.err, x.secondary.Status(), x.secondary.Info().State)
		}
		if err := x.secondary.Failover(); !errors.Is(err, colo.ErrEnded) {
			t.Errorf("another order: %v", err)
		}
		if x.wantWhole(t) != x.p {
			t.Error("the primary does not run")
		}
		x.close()
	})
}

func TestFencedAsksNobody(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
				refuse(mode)(x)
				refuse(other(mode))(x) // its host is off in truth
				_, r := x.side(mode)
				if err := r.Fenced(); err != nil {
					t.Error(err)
				}
				if err := r.Fenced(); !errors.Is(err, failover.ErrInProgress) {
					t.Errorf("a second time: %v", err)
				}
			})
			x.wait()
			for _, c := range x.witness.Claims() {
				if c.Mode == mode {
					t.Errorf("the arbiter was asked %+v", c)
				}
			}
			if h, _ := x.side(mode); x.wantWhole(t) != h || h.err != nil {
				t.Errorf("the %s does not run: %v", mode, h.err)
			}
			x.close()
		})
	}
}

func TestAnOrderTurnsTheQuestionIntoAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var claims []colo.Claim
		x := afterCheckpoint(t, t.Context(), 2, options{secondary: func(c *colo.SecondaryConfig) {
			c.Arbiter = colo.ArbiterFunc(func(ctx context.Context, c colo.Claim) error {
				claims = append(claims, c)
				if c.Ordered {
					return nil
				}
				<-ctx.Done() // it thinks
				return ctx.Err()
			})
		}}, func(x *pair) {
			refuse(event.ModePrimary)(x)
			x.sc.Break()
		})
		synctest.Wait()
		if st, in := x.secondary.Info().State, x.secondary.Info(); st != colo.StateAsking || in.Failover != failover.None {
			t.Errorf("while the arbiter thinks: %v, %+v", st, in)
		}
		if err := x.secondary.Failover(); err != nil {
			t.Error(err)
		}
		x.wait()
		if len(claims) != 2 || claims[0].Ordered || !claims[1].Ordered || x.s.err != nil {
			t.Errorf("%v; asked %+v", x.s.err, claims)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestEitherSideEndsTheProtectionOnPurpose(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		for _, arbiter := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, arbiter %t", mode, arbiter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := options{}
					if !arbiter {
						o.primary = func(c *colo.PrimaryConfig) { c.Arbiter = nil }
						o.secondary = func(c *colo.SecondaryConfig) { c.Arbiter = nil }
					}
					start := time.Now()
					x := afterCheckpoint(t, t.Context(), 2, o, func(x *pair) {
						_, r := x.side(mode)
						start = time.Now()
						if err := errors.Join(r.End(), r.End()); err != nil {
							t.Error(err)
						}
					})
					x.wait()
					if d := time.Since(start); d > 0 {
						t.Errorf("it took %v", d)
					}
					if x.p.err != nil || !errors.Is(x.s.err, colo.ErrGoodbye) {
						t.Errorf("the primary ended with %v, the secondary with %v", x.p.err, x.s.err)
					}
					if n := len(x.witness.Claims()); n > 0 {
						t.Errorf("the arbiter was asked %d times", n)
					}
					want := map[event.Mode]event.ExitReason{mode: event.ExitRequest, other(mode): event.ExitError}
					for _, h := range []*host{x.p, x.s} {
						m := event.Mode(h.name)
						if e := h.exits(); len(e) != 1 || e[0].Reason != want[m] {
							t.Errorf("the %s said %v", m, e)
						}
						ended := 0
						for _, e := range h.events {
							if e, ok := e.(event.ProtectionEnded); ok && e.By == mode {
								ended++
							}
						}
						if ended != 1 {
							t.Errorf("the %s said %d times that the %s has ended the protection", m, ended, mode)
						}
						_, r := x.side(m)
						if err := r.End(); !errors.Is(err, colo.ErrEnded) {
							t.Errorf("End after the end: %v", err)
						}
					}
					if x.primary.Info().State != colo.StateAlone || x.secondary.Info().State != colo.StateStopped {
						t.Errorf("%v and %v", x.primary.Info().State, x.secondary.Info().State)
					}
					if x.wantWhole(t) != x.p {
						t.Error("the primary's guest does not run")
					}
					x.close()
				})
			})
		}
	}
}

func TestEndTowardsAPeerThatCannotSayGoodbyeIsAClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := afterCheckpoint(t, t.Context(), 2, options{qemu: true}, func(x *pair) { x.primary.End() })
		x.wait()
		c := x.witness.Claims()
		if len(c) == 0 || c[0].Mode != event.ModePrimary && !c[0].Ordered || !errors.Is(c[0].Cause, colo.ErrGoodbye) && c[0].Mode == event.ModePrimary {
			t.Errorf("the arbiter was asked %+v", c)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestCancelledPrimaryOfAHungSecondaryAsksOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, granted := range []bool{true, false} {
			ctx, cancel := context.WithCancel(t.Context())
			x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Second }})
			if !granted {
				refuse(event.ModePrimary)(x)
			}
			x.p.run(ctx, x.primary)
			x.s.run(t.Context(), x.secondary)
			time.Sleep(3500 * time.Millisecond)
			x.pc.Stall()
			x.sc.Stall()
			cancel()
			x.p.wait()
			if !errors.Is(x.p.err, context.Canceled) && granted || !granted && !errors.Is(x.p.err, colo.ErrRefused) {
				t.Errorf("granted %t: %v", granted, x.p.err)
			}
			if x.p.guest.Paused() == granted {
				t.Errorf("granted %t, and the guest is paused: %t", granted, x.p.guest.Paused())
			}
			x.s.wait()
			x.wantWhole(t)
			x.close()
		}
	})
}

func TestAWaitingPrimaryReadsItsLink(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*pair)
		want func(error) bool
	}{
		{"the link ends", func(x *pair) { x.sc.Close() }, nil},
		{"the link breaks", func(x *pair) { x.sc.Break() }, is(colotest.ErrBroken)},
		{"a byte", func(x *pair) { x.sc.Write([]byte{0}) }, is(colo.ErrOutOfTurn)},
		{"a word", func(x *pair) { x.sc.Write(be32(6)) }, func(err error) bool {
			var m *colo.MessageError
			return errors.Is(err, colo.ErrOutOfTurn) && errors.As(err, &m) && m.Got == colo.VMStateLoaded
		}},
		{"the first byte of a goodbye", func(x *pair) { x.sc.Write([]byte{0x4c}) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at time.Time
				o := options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour }}
				x := newPair(t, o)
				refuse(event.ModeSecondary)(x)
				x.start(t.Context())
				time.Sleep(10 * time.Minute)
				at = time.Now()
				c.do(x)
				x.p.wait()
				if d := time.Since(at); d >= time.Second {
					t.Errorf("noticed after %v", d)
				}
				claims := x.witness.Claims()
				if c.want != nil && !c.want(claims[0].Cause) && !c.want(claims[len(claims)-1].Cause) {
					t.Errorf("the session ended with %v", claims)
				}
				x.s.wait()
				x.wantWhole(t)
				x.close()
			})
		})
	}
}

func TestAHealthyPairOutlivesAnyDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, idle := range []time.Duration{0, time.Minute} {
			ctx, cancel := context.WithCancel(t.Context())
			x := newPair(t, options{
				primary:   func(c *colo.PrimaryConfig) { c.CheckpointDelay, c.PeerTimeout = time.Second, 0 },
				secondary: func(c *colo.SecondaryConfig) { c.IdleTimeout, c.PeerTimeout = idle, 0 },
			})
			x.start(ctx)
			time.Sleep(5 * time.Second)
			x.primary.SetCheckpointDelay(24 * time.Hour)
			time.Sleep(100 * time.Hour)
			if n := len(x.witness.Claims()); n > 0 || x.primary.Info().Epoch < 4 {
				t.Errorf("idle timeout %v: %d claims after 100 hours", idle, n)
			}
			// And a primary that hangs is still noticed.
			x.pc.Stall()
			start := time.Now()
			x.s.wait()
			if d := time.Since(start); d > 6*time.Minute {
				t.Errorf("noticed after %v", d)
			}
			cancel()
			x.p.wait()
			x.close()
		}
	})
}

// badDevice cannot be saved.
type badDevice struct{ v uint64 }

func (*badDevice) PreSave() error              { return errors.New("it cannot be saved now") }
func (d *badDevice) VMState(f *vmstate.Fields) { f.Uint64("v", &d.v) }

func TestAFailedFirstAttemptLeavesTheGuestAsItWas(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*pair) error
		why     string
	}{
		{"a device cannot be saved", func(x *pair) error {
			return x.p.reg.Register(vmstate.Entry{Name: "odd"}, &badDevice{})
		}, "it cannot be saved now"},
		{"the secondary has no such device", func(x *pair) error {
			return x.p.reg.Register(vmstate.Entry{Name: "odd"}, &plain{guest: x.p.guest})
		}, "odd"},
		{"the secondary is of another machine", func(x *pair) error { return nil }, "machine"},
		{"a device blocks it", func(x *pair) error {
			return errors.Join(
				x.p.reg.Register(vmstate.Entry{Name: "disk", Unmigratable: "it is the host's"}, &plain{guest: x.p.guest}),
				x.p.reg.Register(vmstate.Entry{Name: "card", Unmigratable: "it is hardware"}, &plain{guest: x.p.guest}),
			)
		}, "it is the host's"},
	} {
		for _, arbiter := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, arbiter %t", c.name, arbiter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := newPair(t, options{
						primary: func(p *colo.PrimaryConfig) {
							if !arbiter {
								p.Arbiter = nil
							}
							if strings.Contains(c.name, "another machine") {
								p.Machine = "other"
							}
						},
						secondary: func(s *colo.SecondaryConfig) {
							if !arbiter {
								s.Arbiter = nil
							}
						},
					})
					if err := c.prepare(x); err != nil {
						t.Fatal(err)
					}
					x.p.step(3)
					x.start(t.Context())
					x.wait()
					if x.p.err == nil || !strings.Contains(x.p.err.Error(), c.why) {
						t.Errorf("the primary ended with %v, which does not say why", x.p.err)
					}
					if n := len(x.witness.Claims()); n > 0 {
						t.Errorf("the arbiter was asked %d times for a guest that there is once", n)
					}
					refused := 0
					for _, e := range x.p.events {
						if _, ok := e.(event.ProtectionRefused); ok {
							refused++
						}
					}
					if refused != 1 {
						t.Errorf("PROTECTION_REFUSED %d times", refused)
					}
					var blocked []string
					if c.name == "a device blocks it" {
						blocked = []string{"non-migratable device: card", "non-migratable device: disk"}
					}
					if d := cmp.Diff(blocked, x.primary.Info().BlockedReasons); d != "" {
						t.Errorf("the reasons (-want +got):\n%s", d)
					}
					x.p.step(3)
					if x.p.net.Held() != 0 {
						t.Errorf("%d frames are held", x.p.net.Held())
					}
					if x.wantWhole(t) != x.p {
						t.Error("the guest does not run")
					}
					x.close()
				})
			})
		}
	}
}

func TestAnArbiterOutOfReachIsAskedUntilItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
			back := time.Now().Add(10 * time.Minute)
			x.witness.Deny = func(colo.Claim) error {
				if time.Now().Before(back) {
					return context.DeadlineExceeded
				}
				return nil
			}
			x.pc.Break()
		})
		time.Sleep(5 * time.Minute)
		for _, r := range []runner{x.primary, x.secondary} {
			if st := r.Info().State; st != colo.StateAsking {
				t.Errorf("meanwhile a side is %v", st)
			}
		}
		if n := len(x.witness.Claims()); n < 20 || n > 200 {
			t.Errorf("it was asked %d times in five minutes", n)
		}
		x.wait()
		if x.wantWhole(t); x.p.err == nil == (x.s.err == nil) {
			t.Errorf("the primary ended with %v, the secondary with %v", x.p.err, x.s.err)
		}
		x.close()
	})
}

// slowDisk takes its time for a checkpoint.
type slowDisk struct {
	*colotest.Disk
	commit time.Duration
}

func (d *slowDisk) Checkpoint(ctx context.Context, epoch uint64) error {
	if epoch == 2 {
		time.Sleep(d.commit)
	}
	return d.Disk.Checkpoint(ctx, epoch)
}

func TestSlowIsNotLostUntilItCostsTooMuch(t *testing.T) {
	for _, c := range []struct {
		name    string
		commit  time.Duration // of the secondary's disk
		timeout time.Duration // CheckpointTimeout
		lasts   bool
	}{
		{"a commit within the default", 4 * time.Second, 0, true},
		{"a commit that the host waits for", 50 * time.Second, time.Minute, true},
		{"a commit that takes too long", 50 * time.Second, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newPair(t, options{
					primary: func(p *colo.PrimaryConfig) {
						p.CheckpointDelay, p.PeerTimeout, p.CheckpointTimeout = time.Second, 10*time.Second, c.timeout
					},
					secondary: func(s *colo.SecondaryConfig) {
						s.PeerTimeout = 10 * time.Second
						s.Disks[0] = &slowDisk{s.Disks[0].(*colotest.Disk), c.commit}
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				x.start(ctx)
				time.Sleep(5 * time.Minute)
				claims := x.witness.Claims()
				if c.lasts != (len(claims) == 0) {
					t.Fatalf("after five minutes the arbiter was asked %+v", claims)
				}
				if !c.lasts {
					if claims[0].Mode != event.ModePrimary || !errors.Is(claims[0].Cause, colo.ErrStalled) || !errors.Is(claims[0].Cause, colo.ErrTimeout) {
						t.Errorf("the first claim is %+v", claims[0])
					}
					var said []event.OutputStalled
					for _, e := range x.p.events {
						if e, ok := e.(event.OutputStalled); ok {
							said = append(said, e)
						}
					}
					if len(said) != 1 || said[0].Epoch != 2 || time.Duration(said[0].AgeNS) != colo.DefaultCheckpointTimeout {
						t.Errorf("it said %+v", said)
					}
					if x.p.guest.Paused() {
						t.Error("the primary's guest does not run")
					}
				}
				cancel()
				x.wait()
				x.close()
			})
		})
	}
}

func TestTimesThatCannotWorkAreRefused(t *testing.T) {
	x := newPair(t, options{})
	defer x.close()
	for name, change := range map[string]func(*colo.PrimaryConfig){
		"MaxDowntime": func(c *colo.PrimaryConfig) { c.MaxDowntime, c.CheckpointTimeout = time.Second, time.Second },
		"MinInterval": func(c *colo.PrimaryConfig) { c.MinInterval = time.Minute },
	} {
		cfg := x.p.primary()
		change(&cfg)
		if _, err := colo.NewPrimary(x.pc, cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := x.s.secondary()
	cfg.IdleTimeout, cfg.PeerTimeout = time.Second, time.Minute
	if _, err := colo.NewSecondary(x.sc, cfg); err == nil || !strings.Contains(err.Error(), "IdleTimeout") {
		t.Errorf("IdleTimeout: %v", err)
	}
}

func TestRunIsCalledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) { x.primary.End() })
		x.wait()
		for _, r := range []runner{x.primary, x.secondary} {
			if err := r.Run(t.Context()); !errors.Is(err, colo.ErrEnded) {
				t.Errorf("again: %v", err)
			}
		}
		if x.wantWhole(t) != x.p {
			t.Error("the primary's guest does not run")
		}
		x.close()
	})
}

func TestATornGuestOfEpoch0SaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{})
		x.s.disk.Fail = func(c colotest.Call) error {
			if c.Name == "start" {
				return errDisk
			}
			return nil
		}
		x.start(t.Context())
		x.wait()
		torn := 0
		for _, e := range x.s.events {
			if e, ok := e.(event.GuestTorn); ok && strings.Contains(e.Error, errDisk.Error()) {
				torn++
			}
		}
		if !errors.Is(x.s.err, failover.ErrTorn) || !errors.Is(x.s.err, errDisk) || len(x.s.exits()) != 1 || torn != 1 {
			t.Errorf("%v; COLO_EXIT %d times, GUEST_TORN %d times", x.s.err, len(x.s.exits()), torn)
		}
		if !errors.Is(x.p.err, colo.ErrGoodbye) || len(x.witness.Claims()) > 0 {
			t.Errorf("the primary ended with %v, though the secondary has said that it has no guest", x.p.err)
		}
		if x.p.guest.Paused() {
			t.Error("no guest runs")
		}
		x.close()
	})
}

func TestPausesOfOthersAreNotUndone(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
				h, _ := x.side(mode)
				if err := h.guest.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			h, r := x.side(mode)
			for range 5 {
				time.Sleep(time.Second)
				if !h.guest.Paused() {
					t.Fatalf("the %s runs after checkpoint %d", mode, r.Info().Epoch)
				}
			}
			r.Failover()
			x.wait()
			if h.err != nil || !h.guest.Paused() {
				t.Errorf("after the takeover, %v, the guest is paused: %t", h.err, h.guest.Paused())
			}
			if err := h.guest.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			if x.wantWhole(t) != h {
				t.Errorf("the %s does not run when the operator has resumed it", mode)
			}
			x.close()
		})
	}
}

func TestRequestsFollowEachOtherAtAMeasuredPace(t *testing.T) {
	for _, c := range []struct{ interval, want time.Duration }{{0, colo.DefaultMinInterval}, {100 * time.Millisecond, 100 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			x := newPair(t, options{primary: func(p *colo.PrimaryConfig) { p.CheckpointDelay, p.MinInterval = time.Hour, c.interval }})
			ctx, cancel := context.WithCancel(t.Context())
			event.Subscribe(&x.p.bus, func(event.CheckpointCommit) { x.primary.RequestCheckpoint(event.CauseDivergence) })
			x.start(ctx)
			const while = 10 * time.Second
			time.Sleep(while + c.want/2)
			cancel()
			x.wait()
			if n, most := x.primary.Info().Checkpoints, uint64(while/c.want)+1; n > most || n < most-2 {
				t.Errorf("MinInterval %v: %d checkpoints in %v, want %d", c.interval, n, while, most)
			}
			x.close()
		})
	}
}

func TestADivergenceEndsTheSendingAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		x = newPair(t, options{
			guest: colotest.GuestConfig{Pages: 1024, Touch: 128},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, 1
				c.Step = func(op string, epoch uint64) {
					if op == "send ram ahead" && epoch == 2 {
						x.primary.RequestCheckpoint(event.CauseDivergence)
					}
				}
			},
		})
		var causes []event.Cause
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			x.p.step(3)
			if causes = append(causes, c.Cause); c.Epoch == 3 {
				x.primary.End()
			}
		})
		x.start(t.Context())
		x.wait()
		if want := []event.Cause{event.CauseInitial, event.CauseTimer, event.CauseDivergence, event.CauseTimer}; fmt.Sprint(causes) != fmt.Sprint(want) {
			t.Errorf("causes %v, want %v: one checkpoint is enough for both", causes, want)
		}
		x.wantWhole(t)
		x.close()
	})
}

func TestALinkThatTakesFewBytesMakesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := colotest.Pipe(colotest.Flow{Capacity: 16}, colotest.Flow{})
		l := colo.NewLink(a, time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p := make([]byte, 8)
			for {
				time.Sleep(900 * time.Millisecond)
				if _, err := b.Read(p); err != nil {
					return
				}
			}
		}()
		l.W.Write(make([]byte, 200))
		if err := l.Flush(); err != nil {
			t.Errorf("a write of which some is taken all the time: %v", err)
		}
		l.Close()
		<-done
	})
}

func TestAGoodbyeThatIsCutIsSettledByTheArbiter(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			run := func(ps, sp colotest.Flow) *pair {
				x := newPair(t, options{ps: ps, sp: sp, primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour }})
				x.start(t.Context())
				time.Sleep(time.Minute)
				_, r := x.side(mode)
				r.End()
				x.wait()
				return x
			}
			whole := run(colotest.Flow{}, colotest.Flow{})
			ps, sp := whole.pc.Sent(), whole.sc.Sent()
			whole.close()
			const words = 8 // the last bytes of each direction: goodbye, and no reason
			for i := int64(1); i <= words; i += 1 + int64(sparse())/4 {
				for _, flows := range [][2]colotest.Flow{
					{{Break: colotest.Point{Op: colotest.Byte, N: ps.Bytes - i}}, {}},
					{{}, {Break: colotest.Point{Op: colotest.Byte, N: sp.Bytes - i}}},
					{{Break: colotest.Point{Op: colotest.Byte, N: ps.Bytes - i}, Drop: true}, {}},
				} {
					x := run(flows[0], flows[1])
					h := x.wantWhole(t)
					if n := len(x.witness.Claims()); h != x.p && n == 0 {
						t.Errorf("%s, %v: the %s runs, and nobody has asked", mode, flows, h.name)
					}
					if t.Failed() {
						t.Fatalf("%s says goodbye, %d bytes before the end: primary %v, secondary %v", mode, i, x.p.err, x.s.err)
					}
					x.close()
				}
			}
		})
	}
}

func TestASideThatYieldsLeavesTheGuestToTheOther(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			why := errors.New("the vCPU broke")
			x := afterCheckpoint(t, t.Context(), 2, options{}, func(x *pair) {
				_, r := x.side(mode)
				r.Yield(why)
			})
			x.wait()
			h, r := x.side(mode)
			if !errors.Is(h.err, why) || r.Info().State != colo.StateStopped {
				t.Errorf("the %s ended with %v, state %v", mode, h.err, r.Info().State)
			}
			for _, c := range x.witness.Claims() {
				if c.Mode == mode {
					t.Errorf("it asked %+v", c)
				}
			}
			if o, _ := x.side(other(mode)); x.wantWhole(t) != o || o.err != nil {
				t.Errorf("the other side ended with %v", o.err)
			}
			x.close()
		})
	}
}
