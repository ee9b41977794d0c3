package colo_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
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

// An operator's word may come between the two steps of a failover that the arbiter has
// granted: the guest goes on once, and neither is an error.
func TestFencedComesWithTheArbitersYes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		defer a.Close()
		defer b.Close()
		side := colo.NewAsking(colo.NewLink(a, 0))
		if err := side.Request(); err != nil {
			t.Fatal(err)
		}
		if err := side.Fenced(); err != nil {
			t.Errorf("the operator: %v", err)
		}
		if err := side.Begin(); err != nil {
			t.Errorf("the arbiter: %v", err)
		}
	})
}
