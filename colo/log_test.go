package colo_test

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// A subscriber that does not return, or a handler of the log that does not, holds up the session, and nothing else
// of it tells that.
func TestInfoSaysForHowLongASessionWaitsForASubscriberOrItsLog(t *testing.T) {
	for _, by := range []string{"a subscriber", "the handler of the log"} {
		synctest.Test(t, func(t *testing.T) {
			goesOn := make(chan struct{})
			waits := func(name string) {
				if name == (event.CheckpointCommit{}).Name() {
					<-goesOn
				}
			}
			x := newPair(t, options{primary: func(c *colo.PrimaryConfig) {
				c.CheckpointDelay = time.Second
				if by != "a subscriber" {
					c.Logger = slog.New(handled{slog.DiscardHandler, waits})
				}
			}})
			defer x.close()
			if by == "a subscriber" {
				defer x.p.bus.SubscribeAll(func(r event.Record) { waits(r.Event.Name()) })()
			}
			if d := x.primary.Info().Telling; d != 0 {
				t.Errorf("%s: before Run: %v", by, d)
			}
			x.start(t.Context())
			time.Sleep(time.Second) // at the first commit, which takes no time here
			if in := x.primary.Info(); in.Telling != time.Second || in.Checkpoints != 0 {
				t.Errorf("%s: %v, after %d checkpoints", by, in.Telling, in.Checkpoints)
			}
			close(goesOn)
			time.Sleep(3500 * time.Millisecond)
			if in := x.primary.Info(); in.Telling != 0 || in.Checkpoints == 0 {
				t.Errorf("%s: when it has returned: %v, after %d checkpoints", by, in.Telling, in.Checkpoints)
			}
			x.primary.End()
			x.wait()
		})
	}
}

// handled is a handler that keeps every record from a session until a function has returned.
type handled struct {
	slog.Handler
	handle func(message string)
}

func (h handled) Enabled(context.Context, slog.Level) bool { return true }

func (h handled) Handle(_ context.Context, r slog.Record) error { h.handle(r.Message); return nil }
