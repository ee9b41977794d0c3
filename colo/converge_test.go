package colo_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// rounds is a RAM that is told of each round of memory that is sent ahead.
type rounds struct{ round func() }

func (rounds) Pages() uint64           { return 0 }
func (r rounds) BeginAhead()           { r.round() }
func (rounds) Ahead() (uint64, uint64) { return 0, 0 }

// A guest that is about to be handed over stands still for what it has written last, not for
// what it has written since the checkpoint before.
func TestMemoryIsSentInRoundsBeforeAGuestIsHandedOver(t *testing.T) {
	for name, test := range map[string]struct {
		writes []int // 32 pages each: before the checkpoint, and then in each round
		rounds int
		left   int64 // bytes sent with the guest standing still, at most
	}{
		"each round leaves less":         {[]int{8, 3, 1}, 3, 4 << 10},
		"the guest writes as it is sent": {[]int{4, 4, 4, 4}, 1, 600 << 10},
		"it writes next to nothing":      {[]int{0}, 0, 4 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var x *pair
				var steps []string
				var began, behind int64
				begun, ready := 0, 0
				write := func() {
					if begun < len(test.writes) && test.writes[begun] > 0 {
						x.p.step(test.writes[begun])
					}
				}
				x = newPair(t, options{
					guest: colotest.VMConfig{Pages: 1024, Touch: 32},
					primary: func(c *colo.PrimaryConfig) {
						c.CheckpointDelay, c.AheadThreshold = time.Second, -1
						c.RAM = rounds{func() { begun++; write() }}
						c.Step = func(op string, epoch uint64) {
							if epoch != 2 {
								return
							}
							if len(steps) < 5 {
								steps = append(steps, op)
							}
							switch now := x.pc.Sent().Bytes; op {
							case "pause":
								began = now
							case "expect vmstate-received":
								behind = now - began
							}
						}
					},
				})
				defer x.close()
				event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) { // on the session's goroutine
					switch c.Epoch {
					case 1: // a timer's
						write()
						x.primary.Converge(func() { ready++; steps = append(steps, "ready") })
					case 2:
						if c.Cause != event.CauseRequest {
							t.Errorf("the cause is %v", c.Cause)
						}
					case 3:
						x.pc.Break()
					}
				})
				x.start(t.Context())
				x.wait()
				x.wantWhole(t)
				want := []string{"send checkpoint-request", "expect checkpoint-reply", "send ram ahead", "ready", "pause"}
				if !slices.Equal(steps, want) || ready != 1 {
					t.Errorf("steps %q, ready %d times", steps, ready)
				}
				if begun != test.rounds || behind > test.left {
					t.Errorf("%d rounds, and %d bytes sent after them; want %d and at most %d", begun, behind, test.rounds, test.left)
				}
				if sync := x.primary.Info().Sync; sync.Passes != test.rounds+1 {
					t.Errorf("%+v", sync)
				}
			})
		})
	}
}

// Packets that have diverged wait: the guest is paused after the round under way.
func TestADivergenceEndsTheRoundsBeforeAHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		begun := 0
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 32},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, -1
				c.RAM = rounds{func() {
					if begun++; begun == 1 {
						x.p.step(3)
						x.primary.RequestCheckpoint(event.CauseDivergence)
					}
				}}
			},
		})
		defer x.close()
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			switch c.Epoch {
			case 1:
				x.p.step(8)
				x.primary.Converge(nil)
			case 2:
				if c.Cause != event.CauseDivergence || begun != 1 {
					t.Errorf("cause %v after %d rounds", c.Cause, begun)
				}
				x.pc.Break()
			}
		})
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
	})
}

// wholeRounds is a RAM that can leave nothing out.
type wholeRounds struct {
	rounds
	begin func()
}

func (w wholeRounds) BeginRounds() { w.begin() }

// Pages that are left out of what is sent ahead of a checkpoint are not left out of the rounds.
func TestRoundsBeforeAHandOverLeaveNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		ahead, all := 0, 0
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 32},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, -1
				c.RAM = wholeRounds{rounds{func() { ahead++ }}, func() { all++ }}
			},
		})
		defer x.close()
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			switch c.Epoch {
			case 1:
				x.p.step(8)
				x.primary.Converge(nil)
			case 2:
				x.pc.Break()
			}
		})
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
		if passes := x.primary.Info().Sync.Passes; ahead != 0 || all != 1 || passes != 2 {
			t.Errorf("BeginAhead %d times, BeginRounds %d times, and %d passes; want 0, 1 and 2", ahead, all, passes)
		}
	})
}

// What has been sent to a secondary is not there yet: the guest runs until it is, and is paused
// at once if the session is lost meanwhile or packets wait.
func TestAGuestThatIsHandedOverRunsUntilTheSecondaryHasWhatWasSent(t *testing.T) {
	const sent = 8 * 32 * 4096 / 125e6 // in seconds, over a link of 1 Gbit/s, which an unknown one is taken for
	whole := time.Duration(sent * float64(time.Second))
	for name, test := range map[string]struct {
		meanwhile   func(p *colo.Primary)
		least, most time.Duration
		cause       event.Cause
	}{
		"nothing happens": {func(*colo.Primary) {}, whole, whole * 5 / 4, event.CauseRequest},
		"packets wait":    {func(p *colo.Primary) { p.RequestCheckpoint(event.CauseDivergence) }, time.Millisecond, time.Millisecond, event.CauseDivergence},
		"a request":       {func(p *colo.Primary) { p.RequestCheckpoint(event.CauseRequest) }, time.Millisecond, time.Millisecond, event.CauseRequest},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var x *pair
				var ahead, paused time.Time
				x = newPair(t, options{
					guest: colotest.VMConfig{Pages: 1024, Touch: 32},
					primary: func(c *colo.PrimaryConfig) {
						c.CheckpointDelay, c.AheadThreshold = time.Second, -1
						c.Step = func(op string, epoch uint64) {
							switch {
							case epoch == 2 && op == "send ram ahead":
								ahead = time.Now()
								time.AfterFunc(time.Millisecond, func() { test.meanwhile(x.primary) })
							case epoch == 2 && op == "pause":
								paused = time.Now()
							}
						}
					},
				})
				defer x.close()
				event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
					switch c.Epoch {
					case 1:
						x.p.step(8)
						x.primary.Converge(nil)
					case 2:
						if c.Cause != test.cause {
							t.Errorf("the cause is %v", c.Cause)
						}
						x.pc.Break()
					}
				})
				x.start(t.Context())
				x.wait()
				x.wantWhole(t)
				if d := paused.Sub(ahead); d < test.least || d > test.most {
					t.Errorf("paused after %v, want %v to %v", d, test.least, test.most)
				}
			})
		})
	}
}

// Nor does the end of the session wait for it.
func TestASessionThatIsLostWaitsForNoRoundOfAHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var lost time.Time
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 32},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.AheadThreshold = time.Second, -1
				c.Step = func(op string, epoch uint64) {
					if epoch == 2 && op == "send ram ahead" {
						time.AfterFunc(time.Millisecond, func() {
							lost = time.Now()
							x.primary.Lost(nil)
						})
					}
				}
			},
		})
		defer x.close()
		var exit time.Time
		event.Subscribe(&x.p.bus, func(event.COLOExit) { exit = time.Now() })
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 1 {
				x.p.step(8)
				x.primary.Converge(nil)
			}
		})
		x.start(t.Context())
		x.wait()
		if lost.IsZero() || !exit.Equal(lost) {
			t.Errorf("lost at %v, and the end begins at %v", lost, exit)
		}
	})
}

// A guest is not handed over later because a checkpoint was made right before.
func TestTheLastCheckpointIsNotDelayedByTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var begun [4]time.Time
		x = newPair(t, options{
			guest: colotest.VMConfig{Pages: 1024, Touch: 32},
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay, c.MinInterval, c.AheadThreshold = time.Hour, 4*time.Second, -1
			},
		})
		defer x.close()
		event.Subscribe(&x.p.bus, func(c event.CheckpointStart) { begun[c.Epoch] = time.Now() })
		event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			switch c.Epoch {
			case 0:
				x.primary.RequestCheckpoint(event.CauseRequest)
			case 1:
				x.primary.Converge(nil)
			case 2: // any other request waits
				x.primary.RequestCheckpoint(event.CauseRequest)
			case 3:
				x.pc.Break()
			}
		})
		x.start(t.Context())
		x.wait()
		x.wantWhole(t)
		if d := begun[2].Sub(begun[1]); d >= time.Second {
			t.Errorf("the last checkpoint began %v after the one before", d)
		}
		if d := begun[3].Sub(begun[2]); d < 3*time.Second {
			t.Errorf("another began after %v", d)
		}
	})
}
