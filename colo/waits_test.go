package colo_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

func TestAWaitingPrimarySaysAliveThreeTimesWithinWhatItsSecondaryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 90 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		x := newPair(t, options{
			primary:   func(c *colo.PrimaryConfig) { c.CheckpointDelay = 24 * time.Hour },
			secondary: func(c *colo.SecondaryConfig) { c.IdleTimeout = idle },
		})
		x.start(ctx)
		time.Sleep(2*idle + time.Second) // beside the moments in which it speaks
		before := x.pc.Sent().Bytes
		time.Sleep(10 * idle)
		const word = 4 // bytes of a message that has no value
		if n := (x.pc.Sent().Bytes - before) / word; n != 3*10 {
			t.Errorf("it has said %d words in the time of ten silences", n)
		}
		cancel()
		x.wait()
		x.close()
	})
}

func TestAnArbiterThatCannotBeAskedIsAskedAgainLessAndLessOften(t *testing.T) {
	for _, mode := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		synctest.Test(t, func(t *testing.T) {
			x := newPair(t, options{primary: func(c *colo.PrimaryConfig) { c.CheckpointDelay = time.Second }})
			var asked []time.Time
			x.witness.Deny = func(c colo.Claim) error {
				if c.Mode != mode {
					return colotest.ErrHeld
				}
				if asked = append(asked, time.Now()); len(asked) <= 9 {
					return os.ErrDeadlineExceeded
				}
				return nil
			}
			x.start(t.Context())
			time.Sleep(time.Minute)
			x.pc.Break()
			x.wait()
			var waits []time.Duration
			for i := range asked[1:] {
				waits = append(waits, asked[i+1].Sub(asked[i]))
			}
			const ms = time.Millisecond
			if want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms, 5000 * ms}; !slices.Equal(waits, want) {
				t.Errorf("the %s asked again after %v, want %v", mode, waits, want)
			}
			x.wantWhole(t)
			x.close()
		})
	}
}

// A primary that gives a slow secondary up has asked the arbiter before the secondary can
// notice, be the arbiter slow as well.
func TestAPrimaryAsksBeforeItLeavesASlowSecondary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				witness := c.Arbiter
				c.Arbiter = colo.ArbiterFunc(func(ctx context.Context, claim colo.Claim) error {
					time.Sleep(70 * time.Second)
					return witness.Arbitrate(ctx, claim)
				})
			},
			secondary: func(c *colo.SecondaryConfig) {
				c.Disks[0] = &slowDisk{c.Disks[0].(*colotest.Disk), 50 * time.Second}
				c.IdleTimeout = 5 * time.Minute
			},
		})
		x.start(t.Context())
		x.wait()
		if claims := x.witness.Claims(); claims[0].Mode != event.ModePrimary || !errors.Is(claims[0].Cause, colo.ErrStalled) {
			t.Errorf("the arbiter was asked %+v", claims)
		}
		if x.wantWhole(t) != x.p {
			t.Error("the secondary has taken over from a primary that lives")
		}
		x.close()
	})
}

func TestTheInitialSynchronisationMayBeOlderByTheTimeThatItsMemoryTakes(t *testing.T) {
	const timeout = 5 * time.Second
	for _, c := range []struct {
		name  string
		after func(sent int64) time.Duration // how long the secondary takes
		lasts bool
	}{
		{"as long as a checkpoint and its bytes", func(sent int64) time.Duration { return timeout + 4*time.Duration(sent) - 1 }, true},
		{"longer", func(sent int64) time.Duration { return timeout + 4*time.Duration(sent) + time.Millisecond }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sent atomic.Int64 // when the guest stops for the rest
				var x *pair
				x = newPairIn(t, options{
					primary: func(p *colo.PrimaryConfig) {
						p.CheckpointDelay, p.CheckpointTimeout = time.Hour, timeout
						p.Step = func(op string, epoch uint64) {
							if op == "pause" && epoch == 0 {
								sent.Store(x.pc.Sent().Bytes)
							}
						}
					},
					secondary: func(s *colo.SecondaryConfig) {
						s.Step = func(op string, epoch uint64) {
							if op == "commit" && epoch == 0 {
								time.Sleep(c.after(sent.Load()))
							}
						}
					},
				}, func(p *pair) { x = p })
				ctx, cancel := context.WithCancel(t.Context())
				x.start(ctx)
				time.Sleep(time.Minute)
				if sent.Load() == 0 {
					t.Fatal("the guest did not stop")
				}
				if claims := x.witness.Claims(); c.lasts != (len(claims) == 0) || !c.lasts && !errors.Is(claims[0].Cause, colo.ErrStalled) {
					t.Errorf("after %d bytes the arbiter was asked %+v", sent.Load(), claims)
				}
				cancel()
				x.wait()
				x.close()
			})
		})
	}
}

// A primary that has no bound for the age of a checkpoint, and falls silent in the middle of one, is
// lost after IdleTimeout; one that is only slow is not.
func TestASecondaryDoesNotWaitForEverForAPrimaryWithoutACheckpointTimeout(t *testing.T) {
	const idle = time.Minute
	for _, c := range []struct {
		name   string
		at     string // the step of the secondary
		silent time.Duration
		lost   bool
	}{
		{"slow to begin", "expect vmstate-send", idle - time.Second, false},
		{"silent before its memory", "expect vmstate-send", 0, true},
		{"silent in its memory", "stage ram", 0, true},
		{"silent in its devices", "stage device state", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var x *pair
				x = newPairIn(t, options{
					primary: func(p *colo.PrimaryConfig) {
						p.CheckpointDelay, p.CheckpointTimeout, p.PeerTimeout = time.Hour, -1, -1
						p.Step = func(op string, epoch uint64) {
							if op == "pause" && epoch == 1 {
								time.Sleep(c.silent)
							}
						}
					},
					secondary: func(s *colo.SecondaryConfig) {
						s.IdleTimeout, s.PeerTimeout = idle, 10*time.Second
						s.Step = func(op string, epoch uint64) {
							if c.lost && op == c.at && epoch == 1 {
								x.pc.Stall()
							}
						}
					},
				}, func(p *pair) { x = p })
				x.start(ctx)
				time.Sleep(time.Hour + 2*idle)
				if state := x.secondary.Info().State; (state != colo.StateProtected) != c.lost {
					t.Errorf("the secondary is %s", state)
				}
				cancel()
				x.pc.Break()
				x.p.wait()
				x.s.wait()
				x.close()
			})
		})
	}
}
