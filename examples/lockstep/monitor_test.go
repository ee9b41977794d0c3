package main

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/trial"
)

// pages takes what the program prints with -json, and keeps where the sides have their
// pages.
type pages struct {
	mu sync.Mutex
	at map[string]string
}

func (p *pages) Write(line []byte) (int, error) {
	var l struct {
		Handle *struct{ Side, Name, Address string }
	}
	if json.Unmarshal(line, &l) == nil && l.Handle != nil && l.Handle.Name == control.HandlePage {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.at[l.Handle.Side] = l.Handle.Address
	}
	return len(line), nil
}

// of waits until a side has said where its page is, and returns that.
func (p *pages) of(ctx context.Context, t *testing.T, side string) string {
	for {
		p.mu.Lock()
		at := p.at[side]
		p.mu.Unlock()
		if at != "" {
			return at
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the %s has no page", side)
		}
	}
}

func TestBothSidesHaveAMonitorAndAPageForAsLongAsTheyRun(t *testing.T) {
	require.Outside(t, require.Processes)
	addr := "unix:" + filepath.Join(socket.Dir(t), "m")
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := make(chan struct{})
	shown := &pages{at: make(map[string]string)}
	go func() {
		defer close(done)
		lockstep(ctx, append(short, "-json", "-backend", "sim", "-qmp", addr, "-http", "0", "-checkpoints", "1000000", "-interval", "20ms"), shown, io.Discard, false)
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
		want := map[string]protect.State{trial.Primary: protect.Protected, trial.Secondary: protect.Following}[side]
		for state := ""; state != want.String(); {
			var in struct{ State string }
			if err := c.Do(ctx, "query-protection", nil, &in); err != nil {
				t.Fatal(err)
			}
			state = in.State
		}
		var status struct{ Mode event.Mode }
		if err := c.Do(ctx, "query-colo-status", nil, &status); err != nil || string(status.Mode) != side {
			t.Errorf("the %s is %s, %v", side, status.Mode, err)
		}
		if state := pageOf(t, shown.of(ctx, t, side), side); state != want.String() {
			t.Errorf("the page of the %s says that it is %s, want %v", side, state, want)
		}
		if side == trial.Secondary {
			if err := c.Do(ctx, "xen-colo-do-checkpoint", nil, nil); err == nil {
				t.Error("a secondary makes a checkpoint")
			}
			continue
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
