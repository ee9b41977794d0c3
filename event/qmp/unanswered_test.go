package qmp_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// blocked returns a client of a monitor that a command keeps, until the test calls release.
func blocked(t *testing.T, oob bool) (c *qmp.Client, release func()) {
	t.Helper()
	_, s := newHost()
	free := make(chan struct{})
	qmp.Register(s.Commands, "block", func(context.Context, qmp.None) (qmp.None, error) {
		<-free
		return qmp.None{}, nil
	})
	conn, _, end := attach(t, s)
	t.Cleanup(end)
	dial := qmp.NewClient
	if oob {
		dial = qmp.NewClientOOB
	}
	c, err := dial(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, func(ctx context.Context) {
		if err := c.Do(ctx, "block", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("block: %v", err)
		}
	})
	return c, func() { close(free) }
}

func within(t *testing.T, d time.Duration, do func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	do(ctx)
}

// A program that asks a QEMU again and again how it is would otherwise fill its queue while one
// command keeps it, and could not free it out of band any more.
func TestAQuestionThatIsRepeatedKeepsNothingFromAMonitorOutOfBand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, release := blocked(t, true)
		for range 100 {
			within(t, time.Second, func(ctx context.Context) {
				if err := c.Do(ctx, "query-name", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("query-name: %v", err)
				}
			})
		}
		within(t, time.Second, func(ctx context.Context) {
			if err := c.DoOOB(ctx, "query-yank", nil, nil); err != nil {
				t.Errorf("out of band: %v", err)
			}
		})
		if command, _ := c.Unanswered(); command != "block" {
			t.Errorf("it waits for %q", command)
		}
		release()
		within(t, time.Minute, func(ctx context.Context) {
			if err := c.Do(ctx, "query-name", nil, nil); err != nil {
				t.Errorf("when the monitor is free again: %v", err)
			}
		})
		if command, _ := c.Unanswered(); command != "" {
			t.Errorf("it waits for %q after all was answered", command)
		}
	})
}

func TestWhatAMonitorDoesNotAnswerIsNamed(t *testing.T) {
	for _, oob := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c, release := blocked(t, oob)
			began := time.Now().Add(-time.Second)
			within(t, 4*time.Second, func(ctx context.Context) {
				want := "query-name: no answer after 4s, and none to block after 5s: context deadline exceeded"
				if err := c.Do(ctx, "query-name", nil, nil); err == nil || err.Error() != want {
					t.Errorf("%v, want %s", err, want)
				}
			})
			if command, since := c.Unanswered(); command != "block" || !since.Equal(began) {
				t.Errorf("it waits for %q since %v", command, since)
			}
			release()
			if err := c.Do(t.Context(), "query-name", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// Nobody can be told of the end of a monitor that has stopped reading either.
func TestACommandThatCouldNotBeSentIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go func() {
			far.Write([]byte(greeting + "\r\n"))
			far.Read(make([]byte, 1<<10))
			far.Write([]byte(`{"return": {}, "id": 1}` + "\r\n"))
		}()
		c, err := qmp.NewClient(t.Context(), near)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 {
			within(t, time.Second, func(ctx context.Context) {
				err := c.Do(ctx, "query-status", nil, nil)
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer after 1s: ") {
					t.Errorf("%v", err)
				}
			})
			if command, _ := c.Unanswered(); command != "" {
				t.Errorf("it waits for %q", command)
			}
		}
	})
}
