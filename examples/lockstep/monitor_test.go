package main

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/trial"
)

func TestBothSidesHaveAMonitorForAsLongAsTheyRun(t *testing.T) {
	addr := "unix:" + filepath.Join(t.TempDir(), "m")
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var out bytes.Buffer
		lockstep(ctx, append(short, "-backend", "sim", "-qmp", addr, "-checkpoints", "1000000", "-interval", "20ms"), &out, &out, false)
	}()
	defer func() { stop(); <-done }()
	for _, side := range []string{trial.Secondary, trial.Primary} {
		at, err := trial.MonitorOf(addr, side)
		if err != nil {
			t.Fatal(err)
		}
		var c *qmp.Client
		for c, err = qmp.Dial(ctx, at); err != nil; c, err = qmp.Dial(ctx, at) {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		defer c.Close()
		var status struct{ Mode event.Mode }
		if err := c.Do(ctx, "query-colo-status", nil, &status); err != nil || string(status.Mode) != side {
			t.Errorf("the %s is %s, %v", side, status.Mode, err)
		}
		if side == trial.Secondary {
			if err := c.Do(ctx, "xen-colo-do-checkpoint", nil, nil); err == nil {
				t.Error("a secondary makes a checkpoint")
			}
			continue
		}
		for s := colo.StateNew; s != colo.StateProtected; {
			var in colo.Info
			if err := c.Do(ctx, "query-session", nil, &in); err != nil {
				t.Fatal(err)
			}
			s = in.State
		}
		var run struct{ Status string }
		for command, want := range map[string]string{"stop": "paused", "cont": "running"} {
			if command == "cont" {
				c.Do(ctx, "stop", nil, nil)
			}
			if err := c.Do(ctx, command, nil, nil); err != nil {
				t.Error(err)
			}
			if err := c.Do(ctx, "query-status", nil, &run); err != nil || run.Status != want {
				t.Errorf("after %s: %s, %v", command, run.Status, err)
			}
		}
		if err := c.Do(ctx, "cont", nil, nil); err != nil {
			t.Error(err)
		}
		if err := c.Do(ctx, "xen-colo-do-checkpoint", nil, nil); err != nil {
			t.Error(err)
		}
		if _, err := c.Wait(ctx, func(r event.Record) bool {
			e, ok := r.Event.(event.CheckpointCommit)
			return ok && e.Cause == event.CauseRequest
		}); err != nil {
			t.Errorf("no checkpoint that was asked for: %v", err)
		}
	}
}
