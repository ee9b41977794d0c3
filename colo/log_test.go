package colo_test

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// A log of a session has each of its steps, and every record says of which guest,
// side, generation and checkpoint it is.
func TestEveryRecordOfALogSaysWhoseItIs(t *testing.T) {
	logs := map[string]*bytes.Buffer{"primary": {}, "secondary": {}}
	logger := func(side string) *slog.Logger {
		return slog.New(slog.NewTextHandler(logs[side], &slog.HandlerOptions{Level: slog.LevelDebug})).With("guest", "db1", "generation", 3)
	}
	x := newPair(t, options{
		primary:   func(c *colo.PrimaryConfig) { c.Logger = logger("primary") },
		secondary: func(c *colo.SecondaryConfig) { c.Logger = logger("secondary") },
	})
	committed := make(chan struct{})
	var n int
	defer event.Subscribe(&x.p.bus, func(e event.CheckpointCommit) {
		x.primary.RequestCheckpoint(event.CauseRequest)
		if n++; n == 4 {
			close(committed)
		}
	})()
	x.start(t.Context())
	<-committed
	if err := x.primary.End(); err != nil {
		t.Fatal(err)
	}
	x.wait()
	for side, b := range logs {
		for line := range strings.Lines(b.String()) {
			for _, want := range []string{"guest=db1", "generation=3", "side=" + side} {
				if !strings.Contains(line, want) {
					t.Errorf("%s is not in: %s", want, line)
				}
			}
			if !regexp.MustCompile(` checkpoint=\d+`).MatchString(line) {
				t.Errorf("no checkpoint in: %s", line)
			}
		}
		for _, want := range []string{"level=DEBUG msg=CHECKPOINT_START", "level=DEBUG msg=CHECKPOINT_COMMIT", "msg=COLO_EXIT", "level=INFO msg=PROTECTION_ENDED"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("the %s's log lacks %q:\n%s", side, want, b)
			}
		}
	}
}

// What a log does not keep costs a session nothing.
func TestALogThatKeepsNothingCostsNothing(t *testing.T) {
	e := event.Event(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 7, Pages: 100})
	for name, l := range map[string]*slog.Logger{
		"no logger": nil, "a level that is not kept": slog.New(slog.NewTextHandler(new(bytes.Buffer), nil)), "a log that discards": slog.New(slog.DiscardHandler),
	} {
		publish := colo.Told(l)
		if n := testing.AllocsPerRun(100, func() { publish(e) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if l := slog.New(slog.NewTextHandler(new(bytes.Buffer), nil)); l.Enabled(context.Background(), event.Level(e)) {
		t.Error("a checkpoint is told louder than Debug")
	}
}
