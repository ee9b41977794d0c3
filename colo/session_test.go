package colo_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/heartbeat"
	"github.com/google/go-cmp/cmp"
)

func TestFailoverAtAnyStepIsARequestAndIsCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, when := range moments(t) {
			for _, m := range manners {
				ordered := false
				var err error
				x := watched(t, m, func(x *pair, at moment) {
					if at == when && !ordered {
						ordered = true
						refuse(other(when.mode))(x)
						_, r := x.side(when.mode)
						err = r.Failover()
					}
				}, options{})
				h, r := x.side(when.mode)
				switch {
				case !ordered: // this manner has no such step
				case err != nil:
					t.Errorf("%v, %s: Failover: %v", when, m.name, err)
				case len(h.exits()) == 0 && when.mode == event.ModeSecondary && when.epoch == 0:
					// It has no guest yet to go on with, and the primary has lost
					// nothing.
					if !errors.Is(h.err, colo.ErrFailover) || !h.guest.Paused() {
						t.Errorf("%v, %s: Run: %v", when, m.name, h.err)
					}
				default:
					if h.err != nil {
						t.Errorf("%v, %s: Failover was accepted, Run returned %v", when, m.name, h.err)
					}
					want := []event.COLOExit{{Mode: when.mode, Reason: event.ExitRequest}}
					if d := cmp.Diff(want, h.exits()); d != "" {
						t.Errorf("%v, %s: COLO_EXIT (-want +got):\n%s", when, m.name, d)
					}
					in := r.Info()
					if in.Reason != event.ExitRequest || !in.TookOver || in.Failover != failover.Completed || in.Mode != event.ModeNone || in.LastMode != when.mode {
						t.Errorf("%v, %s: %+v", when, m.name, in)
					}
					if got := x.wantWhole(t); got != h {
						t.Errorf("%v, %s: the %s runs", when, m.name, got.name)
					}
					if err := r.Failover(); !errors.Is(err, failover.ErrInProgress) {
						t.Errorf("%v, %s: a second order: %v", when, m.name, err)
					}
				}
				if t.Failed() {
					t.Fatalf("failover at %v, %s", when, m.name)
				}
				x.close()
			}
		}
	})
}

func TestLostAtAnyStepIsSettledByTheArbiter(t *testing.T) {
	lost := errors.New("no beat")
	synctest.Test(t, func(t *testing.T) {
		for _, when := range moments(t) {
			m := manners[0]
			said := false
			x := watched(t, m, func(x *pair, at moment) {
				if at == when && !said {
					said = true
					_, r := x.side(when.mode)
					r.Lost(lost)
				}
			}, options{})
			if h, _ := x.side(when.mode); said {
				for _, e := range h.exits() {
					if e.Reason != event.ExitError {
						t.Errorf("%v: %+v", when, e)
					}
				}
				if h.err != nil && !errors.Is(h.err, lost) {
					t.Errorf("%v: Run: %v, want the reason that was given", when, h.err)
				}
			}
			x.wantWhole(t)
			if t.Failed() {
				t.Fatalf("lost at %v", when)
			}
			x.close()
		}
	})
}

func TestCancelAtAnyStepLeavesThePrimarysGuestRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := moments(t)
		for _, when := range all {
			for _, alsoOther := range []bool{false, true} {
				x, cancelled := cancelRun(t, when, alsoOther)
				h, r := x.side(when.mode)
				if !cancelled {
					x.close()
					continue
				}
				if !errors.Is(h.err, context.Canceled) {
					t.Errorf("the cancelled %s ended with %v", h.name, h.err)
				}
				if r.Info().TookOver || x.secondary.Info().TookOver {
					t.Errorf("a side took over, though the other had not lost it")
				}
				if err := r.Failover(); !errors.Is(err, colo.ErrEnded) {
					t.Errorf("Failover after the end: %v", err)
				}
				if n := len(x.witness.Claims()); n > 0 {
					t.Errorf("the arbiter was asked %d times, though the sides have said goodbye", n)
				}
				if x.wantWhole(t) != x.p {
					t.Errorf("the secondary's guest runs")
				}
				if t.Failed() {
					t.Fatalf("cancelled at %v, the other side too: %v; primary %v, secondary %v", when, alsoOther, x.p.err, x.s.err)
				}
				x.close()
			}
		}
	})
}

// cancelRun cancels one side, or both, at a step of one.
func cancelRun(t *testing.T, when moment, both bool) (x *pair, cancelled bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	octx := t.Context()
	if both {
		octx = ctx
	}
	step := func(mode event.Mode) func(string, uint64) {
		return func(op string, epoch uint64) {
			h, _ := x.side(mode)
			h.step(1)
			if when == (moment{mode, op, epoch}) {
				cancelled = true
				cancel()
			}
		}
	}
	x = newPair(t, options{
		primary:   func(c *colo.PrimaryConfig) { c.AheadThreshold, c.Step = 1, step(event.ModePrimary) },
		secondary: func(c *colo.SecondaryConfig) { c.Step = step(event.ModeSecondary) },
	})
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == checkpoints {
			x.pc.Break()
		}
	})()
	if when.mode == event.ModePrimary {
		x.p.run(ctx, x.primary)
		x.s.run(octx, x.secondary)
	} else {
		x.s.run(ctx, x.secondary)
		x.p.run(octx, x.primary)
	}
	x.wait()
	return x, cancelled
}

func TestSilentPeerIsNoticedWhereverItFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, m := range manners {
			whole := cutRun(t, m, colotest.Flow{}, colotest.Flow{}, false, nil)
			ps, sp := whole.pc.Sent(), whole.sc.Sent()
			inside := pages(whole.tee.sent, uint64(len(whole.p.guest.Memory())))
			x, n := whole, 0
			try := func(ps, sp colotest.Flow) {
				var causes []error
				start := time.Now()
				n++
				x = cutRun(t, m, ps, sp, n%2 == 0, x)
				x.wantWhole(t)
				for _, c := range x.witness.Claims() {
					causes = append(causes, c.Cause)
				}
				for _, h := range []*host{x.p, x.s} {
					causes = append(causes, h.err)
				}
				if x.pc.Broken() {
					return // it was over before
				}
				if !slices.ContainsFunc(causes, func(err error) bool {
					return errors.Is(err, colo.ErrTimeout) && errors.Is(err, os.ErrDeadlineExceeded)
				}) {
					t.Errorf("nobody says that the peer was silent: %v", causes)
				}
				// At most: the reply's wait, and the other side's.
				if d := time.Since(start); d > 3*time.Minute {
					t.Errorf("noticed after %v, each wait is bounded by a minute", d)
				}
				if t.Failed() {
					t.Fatalf("%s: silent from %v (primary), %v (secondary) on", m.name, ps.Stall, sp.Stall)
				}
			}
			for i := int64(0); i < sp.Bytes; i += 1 + int64(sparse()) {
				try(colotest.Flow{}, colotest.Flow{Stall: colotest.Point{Op: colotest.Byte, N: i}})
			}
			for i := range ps.Bytes {
				if inside[i] && i%30011 == 0 || !inside[i] && i%(301*int64(sparse())) == 0 {
					try(colotest.Flow{Stall: colotest.Point{Op: colotest.Byte, N: i}}, colotest.Flow{})
				}
			}
			x.close()
		}
	})
}

// stuckVM cannot be paused from its n-th Pause on.
type stuckVM struct {
	colo.VM
	n int
}

func (s *stuckVM) Pause(ctx context.Context) error {
	if s.n--; s.n < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.VM.Pause(ctx)
}

func TestGuestThatCannotBePausedKeepsNobodyFromAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
			for _, granted := range []bool{true, false} {
				var x *pair
				x = newPair(t, options{
					primary: func(c *colo.PrimaryConfig) {
						c.Step = func(string, uint64) { x.p.step(1) }
						if mode == event.ModePrimary {
							c.VM = &stuckVM{c.VM, 2}
						}
					},
					secondary: func(c *colo.SecondaryConfig) {
						c.Step = func(string, uint64) { x.s.step(1) }
						if mode == event.ModeSecondary {
							c.VM = &stuckVM{c.VM, 1}
						}
					},
				})
				refused := other(mode)
				if !granted {
					refused = mode
				}
				refuse(refused)(x)
				x.start(t.Context())
				x.wait()
				stuck, r := x.side(mode)
				survivor, _ := x.side(other(mode))
				asked := 0
				for _, c := range x.witness.Claims() {
					if c.Mode == mode {
						asked++
					}
				}
				if asked != 1 {
					t.Errorf("the %s, which cannot be paused, asked the arbiter %d times", mode, asked)
				}
				if granted {
					switch {
					case stuck.guest.Paused(), r.Info().State != colo.StateAlone:
						t.Errorf("the guest of the %s does not run, though the arbiter granted it: %v", mode, stuck.err)
					case mode == event.ModePrimary && stuck.err != nil, mode == event.ModeSecondary && !errors.Is(stuck.err, colo.ErrDegraded):
						t.Errorf("the %s ended with %v", mode, stuck.err)
					}
				} else {
					if !errors.Is(stuck.err, colo.ErrNotPaused) || !errors.Is(stuck.err, colo.ErrRefused) || survivor.err != nil {
						t.Errorf("the %s, which is refused and cannot be paused, ended with %v, the other with %v", mode, stuck.err, survivor.err)
					}
					left := len(stuck.net.Released())
					stuck.step(5)
					if n := len(stuck.net.Released()); n != left {
						t.Errorf("%d frames left the %s that was refused", n-left, mode)
					}
					stand(t, stuck)
				}
				if x.survivor(t).name != string(other(refused)) {
					t.Errorf("the %s runs", x.survivor(t).name)
				}
				x.close()
			}
		}
	})
}

// liar is a connection whose n-th write arrives and nevertheless fails.
type liar struct {
	*colotest.Conn
	n int
}

func (l *liar) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(b)
	if l.n--; l.n == 0 {
		return 0, errors.New("who knows")
	}
	return n, err
}

// A write that failed may have arrived: the primary may have let its output
// leave, so the secondary must have become what the output was said by.
func TestReceivedThatMayHaveArrivedIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := 1; n <= 3*checkpoints+1; n++ {
			x := newPair(t, options{})
			o := options{
				primary:   func(c *colo.PrimaryConfig) { c.Step = func(string, uint64) { x.p.step(1) } },
				secondary: func(c *colo.SecondaryConfig) { c.Step = func(string, uint64) { x.s.step(1) } },
			}
			refuse(event.ModePrimary)(x)
			x.join(t, x.pc, &liar{x.sc, n}, o)
			x.start(t.Context())
			x.wait()
			if x.wantWhole(t) != x.s {
				t.Error("the secondary did not take over")
			}
			if t.Failed() {
				t.Fatalf("write %d of the secondary", n)
			}
			x.close()
		}
	})
}

func TestHeartbeatThatStopsLeadsToTheArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{
			primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay, c.PeerTimeout = time.Hour, -1 },
			secondary: func(c *colo.SecondaryConfig) {
				c.PeerTimeout, c.IdleTimeout = -1, -1
			},
		})
		defer x.close()
		refuse(event.ModePrimary)(x)
		ph, sh := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		beat := func(c *colotest.Conn, r runner) {
			err := heartbeat.Run(t.Context(), c, time.Second, 5*time.Second)
			if errors.Is(err, heartbeat.ErrLost) {
				r.Lost(err)
			}
		}
		go beat(ph, x.primary)
		go beat(sh, x.secondary)
		x.start(t.Context())
		time.Sleep(time.Minute) // nothing happens
		x.p.step(3)
		if x.p.guest.Paused() || x.s.guest.Paused() {
			t.Fatal("the pair did not last a minute")
		}
		for _, c := range []*colotest.Conn{x.pc, x.sc, ph, sh} { // the cable is cut
			c.Stall()
		}
		start := time.Now()
		x.wait()
		if d := time.Since(start); d > 6*time.Second {
			t.Errorf("noticed after %v", d)
		}
		for _, c := range x.witness.Claims() {
			if !errors.Is(c.Cause, heartbeat.ErrLost) {
				t.Errorf("the %s claims the guest because of %v", c.Mode, c.Cause)
			}
		}
		if x.wantWhole(t) != x.s {
			t.Error("the secondary did not take over")
		}
	})
}
