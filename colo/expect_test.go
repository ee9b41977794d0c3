package colo_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

var errMaintenance = errors.New("maintenance")

// However a session ends that was expected to, it has ended by request, and the refusal
// that was wanted is told as such; taken back, it is a failure again.
func TestAnEndThatIsExpectedIsARequest(t *testing.T) {
	broken := errors.New("no beat")
	for name, c := range map[string]struct {
		end                 func(x *pair)
		want                event.ExitReason
		released, heartbeat bool
	}{
		"the host says so": {func(x *pair) { x.primary.Expect(errMaintenance); x.primary.Lost(errMaintenance) }, event.ExitRequest, true, false},
		"with more words": {func(x *pair) {
			x.primary.Expect(errMaintenance)
			x.primary.Lost(fmt.Errorf("%w: at noon", errMaintenance))
		}, event.ExitRequest, true, false},
		"the link breaks":         {func(x *pair) { x.primary.Expect(errMaintenance); x.pc.Break() }, event.ExitRequest, true, false},
		"the heartbeat ends":      {func(x *pair) { x.primary.Expect(errMaintenance); x.primary.Lost(broken) }, event.ExitRequest, true, true},
		"it is taken back":        {func(x *pair) { x.primary.Expect(errMaintenance); x.primary.Expect(nil); x.pc.Break() }, event.ExitError, false, false},
		"taken back, and is lost": {func(x *pair) { x.primary.Expect(errMaintenance); x.primary.Expect(nil); x.primary.Lost(broken) }, event.ExitError, false, true},
		"it was given up":         {func(x *pair) { x.primary.Expect(errMaintenance); x.primary.Yield(errMaintenance) }, event.ExitRequest, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newPair(t, options{primary: func(c *colo.PrimaryConfig) {
					c.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
						return fmt.Errorf("%w: %w", colo.ErrRefused, errMaintenance)
					})
				}})
				defer x.close()
				ended := false
				defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
					if e.Epoch == 1 && !ended {
						ended = true
						c.end(x)
					}
				})()
				x.start(t.Context())
				x.wait()
				exits := x.p.exits()
				if len(exits) != 1 || exits[0].Reason != c.want || (exits[0].Error == "") != (c.want == event.ExitRequest) {
					t.Errorf("%+v", exits)
				}
				if r := x.primary.Info().Reason; r != c.want {
					t.Errorf("Info says %v", r)
				}
				released, heartbeat := false, false
				for _, e := range x.p.seen() {
					switch e := e.(type) {
					case event.Arbitration:
						released = released || e.Released
						if e.Ordered != (c.want == event.ExitRequest) || e.Released && e.Answer != event.ArbiterRefused {
							t.Errorf("%+v", e)
						}
					case event.HeartbeatLost:
						heartbeat = true
					}
				}
				if released != c.released || heartbeat != c.heartbeat {
					t.Errorf("released %v, HEARTBEAT_LOST %v", released, heartbeat)
				}
				// The other side was not told of it.
				if exits := x.s.exits(); len(exits) != 1 || exits[0].Reason != event.ExitError {
					t.Errorf("the secondary: %+v", exits)
				}
			})
		})
	}
}

// A primary that gives its guest away, and hears that the other side ends the session, does not
// go on with what it may have given back: the arbiter says whose it is.
func TestAGoodbyeInTheMidstOfAHandoverIsSettledByTheArbiter(t *testing.T) {
	for _, expects := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			x := newPair(t, options{primary: func(c *colo.PrimaryConfig) {
				c.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
					asked++
					return colo.ErrRefused
				})
			}})
			defer x.close()
			ended := false
			defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
				if e.Epoch == 1 && !ended {
					ended = true
					if expects {
						x.primary.Expect(errMaintenance)
					}
					x.secondary.End()
				}
			})()
			x.start(t.Context())
			x.wait()
			if (asked > 0) != expects || errors.Is(x.p.err, colo.ErrRefused) != expects {
				t.Errorf("expected: %v, the arbiter was asked %d times: %v", expects, asked, x.p.err)
			}
		})
	}
}

// What a host has given back stays given back if it says that no end is expected any more, so that a goodbye after
// that is settled by the arbiter as well; and whoever is about to give the guest away after the goodbye hears that
// it is too late.
func TestAGoodbyeCountsByWhetherTheGuestMayHaveBeenGivenAwayBefore(t *testing.T) {
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			x := newPair(t, options{primary: func(c *colo.PrimaryConfig) {
				c.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
					asked++
					return nil
				})
			}})
			defer x.close()
			ended := false
			defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
				if e.Epoch == 1 && !ended {
					ended = true
					if before && !(x.primary.Expect(errMaintenance) && x.primary.Expect(nil)) {
						t.Error("it is too late before there was a goodbye")
					}
					x.secondary.End()
				}
			})()
			x.start(t.Context())
			x.wait()
			if inTime := x.primary.Expect(errMaintenance); inTime != before || (asked > 0) != before || x.p.err != nil {
				t.Errorf("given away before: %v, the arbiter was asked %d times, in time %v: %v", before, asked, inTime, x.p.err)
			}
		})
	}
}

// Where there is no arbiter to give it back to, the other side's goodbye is all that is needed.
func TestAGoodbyeInTheMidstOfAHandoverIsEnoughWithoutAnArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.Arbiter = nil }})
		defer x.close()
		ended := false
		defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
			if e.Epoch == 1 && !ended {
				ended = true
				x.primary.Expect(errMaintenance)
				x.secondary.End()
			}
		})()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		x.start(ctx)
		x.wait()
		if x.p.err != nil || x.primary.Info().State != colo.StateAlone {
			t.Errorf("it is %s: %v", x.primary.Info().State, x.p.err)
		}
	})
}

// What has ended a protection that was only beginning is told in the words of whoever ordered that, and
// not in those of the connection that broke by it.
func TestAnEndOfASynchronisationThatIsExpectedIsToldInItsWords(t *testing.T) {
	noon := fmt.Errorf("%w: at noon", errMaintenance)
	for name, c := range map[string]struct {
		end    func(x *pair, cancel context.CancelCauseFunc)
		ended  string // the reason of PROTECTION_ENDED; "none": there is no such event
		by     event.Mode
		reason event.ExitReason
	}{
		"the link breaks": {func(x *pair, _ context.CancelCauseFunc) { x.primary.Expect(errMaintenance); x.pc.Break() },
			"maintenance", event.ModePrimary, event.ExitRequest},
		"the peer has ordered it": {func(x *pair, _ context.CancelCauseFunc) { x.primary.Expect(colo.ErrEndedByPeer); x.pc.Break() },
			colo.ErrEndedByPeer.Error(), event.ModeSecondary, event.ExitRequest},
		"the host says more": {func(x *pair, _ context.CancelCauseFunc) { x.primary.Expect(errMaintenance); x.primary.Lost(noon) },
			"colo: primary: checkpoint 0: send ram while running: maintenance: at noon", event.ModePrimary, event.ExitRequest},
		"it is not expected": {func(x *pair, _ context.CancelCauseFunc) { x.pc.Break() }, "none", "", event.ExitError},
		"by End":             {func(x *pair, _ context.CancelCauseFunc) { x.primary.End() }, "", event.ModePrimary, event.ExitRequest},
		"its context ends":   {func(_ *pair, cancel context.CancelCauseFunc) { cancel(nil) }, "", event.ModePrimary, event.ExitRequest},
		"and says why":       {func(_ *pair, cancel context.CancelCauseFunc) { cancel(noon) }, "maintenance: at noon", event.ModePrimary, event.ExitRequest},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				var x *pair
				x = newPair(t, options{primary: func(p *colo.PrimaryConfig) {
					p.Step = func(op string, _ uint64) {
						if op == "send ram while running" && x.primary.Info().State == colo.StateSynchronising {
							c.end(x, cancel)
						}
					}
				}})
				defer x.close()
				x.p.run(ctx, x.primary)
				x.s.run(t.Context(), x.secondary)
				x.wait()
				told := "none"
				for _, e := range x.p.seen() {
					if _, refused := e.(event.ProtectionRefused); refused && c.ended != "none" {
						t.Errorf("%+v", e)
					}
					if e, ok := e.(event.ProtectionEnded); ok {
						if told = e.Reason; e.By != c.by {
							t.Errorf("%+v", e)
						}
					}
				}
				if in := x.primary.Info(); told != c.ended || in.Reason != c.reason {
					t.Errorf("it was told as %q, want %q, and Info says %v", told, c.ended, in.Reason)
				}
			})
		})
	}
}

// Whoever ends the context of Run has asked for the end of the session.
func TestAnEndOfTheContextIsARequest(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		for _, qemu := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				x := newPair(t, options{qemu: qemu})
				defer x.close()
				defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
					if e.Epoch == 2 {
						cancel()
					}
				})()
				h, other := x.p, x.s
				if mode == event.ModeSecondary {
					h, other = x.s, x.p
				}
				for side, at := range map[*host]context.Context{h: ctx, other: t.Context()} {
					if side == x.p {
						side.run(at, x.primary)
					} else {
						side.run(at, x.secondary)
					}
				}
				x.wait()
				if exits := h.exits(); len(exits) != 1 || exits[0].Reason != event.ExitRequest || exits[0].Error != "" {
					t.Errorf("the %s, in QEMU's words: %t: %+v", mode, qemu, exits)
				}
				if exits := other.exits(); len(exits) != 1 || exits[0].Reason != event.ExitError {
					t.Errorf("the other side of the %s, in QEMU's words: %t: %+v", mode, qemu, exits)
				}
			})
		}
	}
}
