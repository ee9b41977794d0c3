package colo_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

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
						err, again := r.End(), r.End() // by when it may have ended
						if err != nil || again != nil && !errors.Is(again, colo.ErrEnded) {
							t.Error(err, again)
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

// A question that the end of the context has ended is no answer: the guest of a primary, and one that
// somebody has ordered to go on, is asked for once more.
func TestAGuestIsAskedForOnceMoreWhenTheContextEndsDuringTheQuestion(t *testing.T) {
	const yes, no, silence = "yes", "no", "silence"
	for _, c := range []struct {
		mode    event.Mode
		ordered bool
		answer  string // to the question after the one that is cut
		asked   int
	}{
		{event.ModePrimary, false, yes, 2},
		{event.ModePrimary, false, no, 2},
		{event.ModePrimary, false, silence, 2},
		{event.ModeSecondary, true, yes, 2},
		{event.ModeSecondary, false, yes, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked, cut := 0, make(chan struct{})
			arbiter := colo.ArbiterFunc(func(ctx context.Context, _ colo.Claim) error {
				switch asked++; {
				case asked == 1 || c.answer == silence:
					if asked == 1 {
						close(cut)
					}
					<-ctx.Done()
					return context.Cause(ctx)
				case c.answer == no:
					return colo.ErrRefused
				}
				return nil
			})
			other := colo.ArbiterFunc(func(context.Context, colo.Claim) error { return colo.ErrRefused })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := options{
				primary:   func(p *colo.PrimaryConfig) { p.Arbiter, p.CheckpointDelay = arbiter, time.Second },
				secondary: func(s *colo.SecondaryConfig) { s.Arbiter = other },
			}
			if c.mode == event.ModeSecondary {
				o.primary = func(p *colo.PrimaryConfig) { p.Arbiter, p.CheckpointDelay = other, time.Second }
				o.secondary = func(s *colo.SecondaryConfig) { s.Arbiter = arbiter }
			}
			x := newPair(t, o)
			x.start(ctx)
			time.Sleep(3500 * time.Millisecond)
			if c.ordered {
				x.secondary.Failover()
			} else {
				x.sc.Break()
			}
			<-cut
			cancel()
			x.wait()
			h, _ := x.side(c.mode)
			goesOn := c.asked == 2 && c.answer == yes
			if asked != c.asked || h.guest.Paused() == goesOn || goesOn != (h.err == nil) {
				t.Errorf("%+v: asked %d times, its guest is paused: %t, %v", c, asked, h.guest.Paused(), h.err)
			}
			if !goesOn && !errors.Is(h.err, context.Canceled) && !errors.Is(h.err, colo.ErrRefused) {
				t.Errorf("%+v: it has ended with %v", c, h.err)
			}
			x.close()
		})
	}
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
