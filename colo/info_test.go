package colo_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

func TestDurationsFallIntoBucketsThatDouble(t *testing.T) {
	if colo.BucketBound(0) != 64*time.Microsecond || colo.BucketBound(4) != 1024*time.Microsecond || colo.BucketBound(colo.Buckets-1) != 0 {
		t.Errorf("bounds %v, %v, %v", colo.BucketBound(0), colo.BucketBound(4), colo.BucketBound(colo.Buckets-1))
	}
	var f colo.Figure
	for _, d := range []time.Duration{-1, 0, 63 * time.Microsecond, 64 * time.Microsecond, 127 * time.Microsecond, 128 * time.Microsecond, time.Hour} {
		colo.Add(&f, d)
	}
	want := colo.Histogram{0: 3, 1: 2, 2: 1, colo.Buckets - 1: 1}
	if f.Histogram != want || f.Max != time.Hour || f.Last != time.Hour {
		t.Errorf("%+v, want %v", f, want)
	}
	if q := f.Histogram.Quantile(0.5); q != 128*time.Microsecond {
		t.Errorf("half of them are below %v", q)
	}
	if q := f.Histogram.Quantile(1); q != 0 {
		t.Errorf("all of them are below %v", q)
	}
	if n := testing.AllocsPerRun(100, func() { colo.Add(&f, time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// stopping is a VM that measures its pauses.
type stopping struct {
	colo.VM
	took atomic.Int64
}

func (s *stopping) Stopped() time.Duration { return time.Duration(s.took.Load()) }

// stopped has it say milliseconds, as many as there have been epochs.
func (s *stopping) stopped(epoch uint64) {
	s.took.Store(int64(time.Duration(epoch) * time.Millisecond))
}

// A pause counts for the checkpoint that made it, though the guest's last vCPU is back in
// the guest only a while after the resume. Where the commit comes before that, the next
// checkpoint tells it. Here the pause of an epoch takes as many milliseconds.
func TestHowLongAGuestStoodStillIsSaidOfItsOwnCheckpoint(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late resume %v", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p, s *stopping
				x := newPair(t, options{
					primary: func(c *colo.PrimaryConfig) {
						c.CheckpointDelay, c.LateResume = time.Second, late
						p = &stopping{VM: c.VM}
						c.VM = p
						c.Step = func(op string, epoch uint64) {
							switch {
							case !late && op == "send ram":
								p.stopped(epoch)
							case late && op == "late resume":
								time.AfterFunc(time.Millisecond, func() { p.stopped(epoch) })
							}
						}
					},
					secondary: func(c *colo.SecondaryConfig) {
						s = &stopping{VM: c.VM}
						c.VM = s
						c.Step = func(op string, epoch uint64) {
							if op == "resume" {
								time.AfterFunc(time.Millisecond, func() { s.stopped(epoch) })
							}
						}
					},
				})
				x.start(t.Context())
				time.Sleep(4500 * time.Millisecond)
				wantStopped(t, "the primary", x.p.seen(), late)
				wantStopped(t, "the secondary", x.s.seen(), true)
				want := map[bool]time.Duration{false: 1 + 2 + 3 + 4, true: 1 + 2 + 3}
				if in := x.primary.Info(); in.Stopped.Total != want[late]*time.Millisecond {
					t.Errorf("the primary's guest stood still for %v in all", in.Stopped.Total)
				}
				if in := x.secondary.Info(); in.Stopped.Total != want[true]*time.Millisecond {
					t.Errorf("the secondary's guest stood still for %v in all", in.Stopped.Total)
				}
				x.secondary.Failover()
				x.wait()
				x.wantWhole(t)
				x.close()
			})
		})
	}
}

// wantStopped checks what four commits say of their own pauses, or of those before.
func wantStopped(t *testing.T, who string, seen []event.Event, before bool) {
	t.Helper()
	committed := 0
	for _, e := range seen {
		if c, ok := e.(event.CheckpointCommit); ok && c.Epoch > 0 {
			committed++
			want := c.Epoch
			if before {
				want--
			}
			if c.StoppedEpoch != want || c.StoppedNS != int64(want)*int64(time.Millisecond) {
				t.Errorf("checkpoint %d of %s: the guest stood still for %v in %d, want that of %d", c.Epoch, who, time.Duration(c.StoppedNS), c.StoppedEpoch, want)
			}
		}
	}
	if committed != 4 {
		t.Errorf("%d checkpoints of %s, want 4", committed, who)
	}
}

func TestInfoTellsWhereASessionStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var passing, asking colo.Info
		x = newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				vm := &stopping{VM: c.VM}
				vm.stopped(3)
				c.VM = vm
				c.Step = func(op string, epoch uint64) {
					if op == "pause" && epoch == 0 {
						passing = x.primary.Info()
					}
				}
			},
		})
		if in := x.primary.Info(); in.State != colo.StateNew || in.Reason != event.ExitNone {
			t.Errorf("before Run: %+v", in)
		}
		x.witness.Deny = func(c colo.Claim) error {
			if c.Mode == event.ModeSecondary {
				asking = x.secondary.Info()
			}
			return nil
		}
		x.start(t.Context())
		time.Sleep(2500 * time.Millisecond)
		x.p.step(3)
		time.Sleep(200 * time.Millisecond)
		in := x.primary.Info()
		if in.State != colo.StateProtected || in.Checkpoints != 2 || in.Held.Packets != 3 || in.Held.Bytes <= 0 || in.Held.Age != 200*time.Millisecond {
			t.Errorf("while it runs: %+v", in)
		}
		if in.Hold.Last != time.Second || in.Stopped.Last != 3*time.Millisecond || in.Stopped.Histogram != (colo.Histogram{6: 2}) {
			t.Errorf("output was held for %+v, the guest stood still for %+v", in.Hold, in.Stopped)
		}
		if p := passing.Sync; passing.State != colo.StateSynchronising || p.Passes < 1 || p.Done == 0 {
			t.Errorf("while it synchronises: %+v", passing)
		}
		for _, e := range x.p.seen() {
			if c, ok := e.(event.CheckpointCommit); ok && c.Epoch > 0 && c.StoppedNS != int64(3*time.Millisecond) {
				t.Errorf("checkpoint %d: the guest stood still for %v", c.Epoch, time.Duration(c.StoppedNS))
			}
		}
		x.secondary.Failover()
		x.wait()
		if asking.State != colo.StateAsking || asking.Reason != event.ExitProcessing {
			t.Errorf("while it asks: %+v", asking)
		}
		line, err := json.Marshal(x.secondary.Info())
		if err != nil {
			t.Fatal(err)
		}
		for _, member := range []string{`"state":"alone"`, `"reason":"request"`, `"failover":"completed"`, `"took-over":true`, `"last-mode":"secondary"`, `"max-ns":`, `"expected-downtime-ns":`} {
			if !strings.Contains(string(line), member) {
				t.Errorf("%s has no %s", line, member)
			}
		}
		x.wantWhole(t)
		x.close()
	})
}
