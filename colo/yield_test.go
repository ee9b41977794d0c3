package colo_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A side that yields while it waits to be told who goes on waits no longer: for its arbiter, for the next
// question to one that cannot be asked, or for an order where there is none.
func TestASideThatYieldsWaitsForNobody(t *testing.T) {
	why := errors.New("the disk broke")
	arbiters := map[string]colo.Arbiter{
		"which thinks": colo.ArbiterFunc(func(ctx context.Context, _ colo.Claim) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}),
		"which is out of reach": colo.ArbiterFunc(func(context.Context, colo.Claim) error { return errors.New("no route") }),
		"which is not there":    nil,
	}
	for name, arbiter := range arbiters {
		for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
			t.Run(name+", "+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := options{
						primary:   func(c *colo.PrimaryConfig) { c.Arbiter = arbiter },
						secondary: func(c *colo.SecondaryConfig) { c.Arbiter = arbiter },
					}
					x := afterCheckpoint(t, t.Context(), 2, o, func(x *pair) { x.sc.Break() })
					synctest.Wait()
					h, r := x.side(mode)
					if st := r.Info().State; st != colo.StateAsking {
						t.Errorf("it is %v", st)
					}
					r.Yield(why)
					synctest.Wait()
					select {
					case <-h.done:
					default:
						t.Error("it waits")
					}
					other, its := x.side(other(mode))
					its.Fenced()
					x.wait()
					if st := r.Info().State; !errors.Is(h.err, why) || st != colo.StateStopped || other.err != nil {
						t.Errorf("it has ended with %v, %v; the other with %v", h.err, st, other.err)
					}
					x.wantWhole(t)
					x.close()
				})
			})
		}
	}
}
