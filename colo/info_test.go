package colo_test

import (
	"encoding/json"
	"strings"
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
	took time.Duration
}

func (s *stopping) Stopped() time.Duration { return s.took }

// A pause counts for the checkpoint that made it, though the guest's last vCPU is back in
// the guest only while the state is sent.
func TestHowLongAGuestStoodStillIsSaidOfItsOwnCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var vm *stopping
		x := newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				vm = &stopping{VM: c.VM}
				c.VM = vm
				c.Step = func(op string, epoch uint64) {
					if op == "send ram" {
						vm.took = time.Duration(epoch) * time.Millisecond
					}
				}
			},
		})
		x.start(t.Context())
		time.Sleep(3500 * time.Millisecond)
		committed := 0
		for _, e := range x.p.seen() {
			if c, ok := e.(event.CheckpointCommit); ok && c.Epoch > 0 {
				if committed++; c.StoppedNS != int64(c.Epoch)*int64(time.Millisecond) {
					t.Errorf("checkpoint %d: the guest stood still for %v", c.Epoch, time.Duration(c.StoppedNS))
				}
			}
		}
		if in := x.primary.Info(); committed != 3 || in.Stopped.Total != 6*time.Millisecond {
			t.Errorf("%d checkpoints, in which it stood still for %v", committed, in.Stopped.Total)
		}
		x.secondary.Failover()
		x.wait()
		x.wantWhole(t)
		x.close()
	})
}

func TestInfoTellsWhereASessionStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x *pair
		var passing, asking colo.Info
		x = newPair(t, options{
			primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				c.VM = &stopping{c.VM, 3 * time.Millisecond}
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
