package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

// monitor connects to the monitor of a host that is about to listen.
func monitor(ctx context.Context, t *testing.T, addr string) *qmp.Client {
	t.Helper()
	for {
		c, err := qmp.Dial(ctx, addr)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

type answer struct {
	Status string     `json:"status"`
	Mode   event.Mode `json:"mode"`
	State  string     `json:"state"`
}

func do(ctx context.Context, t *testing.T, c *qmp.Client, command string, args any) (a answer) {
	t.Helper()
	if err := c.Do(ctx, command, args, &a); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return a
}

// comes waits until a host is in a state.
func comes(ctx context.Context, t *testing.T, c *qmp.Client, state string) {
	t.Helper()
	for do(ctx, t, c, "query-protection", nil).State != state {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not %s", state)
		}
	}
}

func TestAPairIsSteeredByItsMonitors(t *testing.T) {
	if testing.Short() {
		t.Skip("starts two processes")
	}
	dir := socket.Dir(t)
	p, err := newPair(dir, false, "continuous")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	slow := []string{"-beat", "2s", "-term", "4s"} // a busy machine loses nobody
	addr := func(h string) string { return "unix:" + filepath.Join(dir, h+".qmp") }
	for _, h := range []string{"b", "a"} {
		if err := p.start(h, h == "a", append([]string{"-qmp", addr(h)}, slow...)...); err != nil {
			t.Fatal(err)
		}
	}
	a, b := monitor(ctx, t, addr("a")), monitor(ctx, t, addr("b"))
	comes(ctx, t, a, "protected")
	comes(ctx, t, b, "following")

	do(ctx, t, a, "stop", nil)
	if s := do(ctx, t, a, "query-status", nil); s.Status != "paused" {
		t.Errorf("after stop the guest is %s", s.Status)
	}
	do(ctx, t, a, "cont", nil)
	if s := do(ctx, t, a, "query-status", nil); s.Status != "running" {
		t.Errorf("after cont the guest is %s", s.Status)
	}
	// The guest's lines come from host b when job-complete has its answer.
	p.client.mark("b")
	do(ctx, t, a, "job-complete", map[string]string{"id": "demo"})
	if _, err := p.client.heard(ctx, "b"); err != nil {
		t.Error(err)
	}
	comes(ctx, t, b, "protected")
	comes(ctx, t, a, "following")
	if s := do(ctx, t, a, "query-colo-status", nil); s.Mode != event.ModeSecondary {
		t.Errorf("host a is %s", s.Mode)
	}
	if s := do(ctx, t, b, "query-status", nil); s.Status != "running" {
		t.Errorf("on host b the guest is %s", s.Status)
	}
	do(ctx, t, a, "quit", nil)
	comes(ctx, t, b, "alone")
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	if c := p.client; c.lost+c.contradicted+c.wrong > 0 || c.lines == 0 {
		t.Errorf("%d lines: %d lost, %d contradicted, %d wrong", c.lines, c.lost, c.contradicted, c.wrong)
	}
}
