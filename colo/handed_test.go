package colo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A handing is what became of a pair whose primary has released the guest for its secondary.
type handing struct {
	runs, knows        time.Duration // after Handed: the secondary's guest runs; the primary's session has ended
	primary, secondary error
	done               time.Duration // when the secondary's Run has returned
}

// handed has a secondary go on with the guest that its primary has released, with an arbiter of its own. Where hears
// is set, the primary ends its session as soon as the guest runs there, as one does that is told.
func handed(t *testing.T, hears bool, arbiter colo.ArbiterFunc) (h handing) {
	x := newPair(t, options{
		primary: func(c *colo.PrimaryConfig) {
			c.CheckpointDelay = time.Hour
			c.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
				return fmt.Errorf("%w: %w", colo.ErrRefused, errMaintenance)
			})
		},
		secondary: func(c *colo.SecondaryConfig) { c.Arbiter = arbiter },
	})
	defer x.close()
	x.start(t.Context())
	synctest.Wait()
	begun := time.Now()
	defer event.Subscribe(&x.p.bus, func(event.COLOExit) { h.knows = time.Since(begun) })()
	defer event.Subscribe(&x.s.bus, func(event.FailoverDone) {
		h.runs = time.Since(begun)
		if x.s.guest.Paused() {
			t.Error("a guest that is said to run stands still")
		}
		if hears {
			x.primary.Lost(errMaintenance)
		}
	})()
	x.primary.Expect(errMaintenance)
	x.secondary.Handed(errMaintenance)
	h.secondary = x.s.wait()
	h.done = time.Since(begun)
	h.primary = x.p.wait()
	exits := x.s.exits()
	if len(exits) != 1 || exits[0].Reason != event.ExitRequest {
		t.Errorf("the secondary's session has ended by %+v", exits)
	}
	return h
}

// A primary that has handed its guest over hears of nothing else before that guest runs: not of the end of
// a connection, for which the secondary would have to wait.
func TestAGuestThatWasHandedOverRunsBeforeItsConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asks = colo.HandedTime / 2
		h := handed(t, true, func(context.Context, colo.Claim) error { time.Sleep(asks); return nil })
		if h.secondary != nil || !errors.Is(h.primary, colo.ErrRefused) {
			t.Errorf("%+v", h)
		}
		if h.runs != asks || h.knows != asks || h.done != asks {
			t.Errorf("it runs after %v, which the primary knows after %v; Run returned after %v", h.runs, h.knows, h.done)
		}
	})
}

// A primary that is not told by its host hears by the end of the connection that it was heard.
func TestAConnectionOfAGuestThatWasHandedOverIsClosedSoon(t *testing.T) {
	for name, asks := range map[string]time.Duration{"the arbiter answers at once": 0, "it takes a second": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := handed(t, false, func(context.Context, colo.Claim) error { time.Sleep(asks); return nil })
				if h.secondary != nil || !errors.Is(h.primary, colo.ErrRefused) {
					t.Errorf("%+v", h)
				}
				if h.runs != asks || h.knows != colo.HandedTime {
					t.Errorf("it runs after %v, and the primary hears after %v", h.runs, h.knows)
				}
			})
		})
	}
}

// A secondary that does not go on after all keeps nobody waiting.
func TestASecondaryThatIsRefusedWhatItWasHandedHangsUpAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handed(t, false, func(context.Context, colo.Claim) error { return colo.ErrRefused })
		if !errors.Is(h.secondary, colo.ErrRefused) || !errors.Is(h.primary, colo.ErrRefused) {
			t.Errorf("%+v", h)
		}
		if h.knows != 0 || h.done != 0 {
			t.Errorf("the primary hears after %v; Run returned after %v", h.knows, h.done)
		}
	})
}

// Who is told while it is being settled who goes on has a connection to close as ever.
func TestASessionThatIsHandedTheGuestAsItAsksForItClosesItsConnection(t *testing.T) {
	for _, answer := range []error{nil, colo.ErrRefused} {
		synctest.Test(t, func(t *testing.T) {
			var x *pair
			x = newPair(t, options{
				primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour },
				secondary: func(c *colo.SecondaryConfig) {
					c.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
						x.secondary.Handed(errMaintenance)
						return answer
					})
				},
			})
			defer x.close()
			x.start(t.Context())
			synctest.Wait()
			if err := x.secondary.Failover(); err != nil { // it asks before it hangs up
				t.Fatal(err)
			}
			x.s.wait()
			if _, err := x.sc.Write([]byte{0}); err == nil {
				t.Errorf("the connection is open after the answer %v", answer)
			}
			x.primary.Lost(errMaintenance)
			x.p.wait()
		})
	}
}

// A session that is ending already ends as it would.
func TestHandedComesTooLateForASessionThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Hour }})
		defer x.close()
		x.start(t.Context())
		synctest.Wait()
		broken := errors.New("no beat")
		x.secondary.Lost(broken)
		x.secondary.Handed(errMaintenance)
		x.wait()
		x.wantWhole(t)
		for _, e := range x.s.seen() {
			if a, ok := e.(event.Arbitration); ok && a.Answer == event.ArbiterAsked && !strings.Contains(a.Error, broken.Error()) {
				t.Errorf("%+v", a)
			}
		}
	})
}
