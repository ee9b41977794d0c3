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
