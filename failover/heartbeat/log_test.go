package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// logged returns the log of a heartbeat whose peer does what is said, without times.
func logged(t *testing.T, level slog.Level, peer func(net.Conn), ctx context.Context, heard func(time.Time)) string {
	t.Helper()
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})).With("guest", "db1", "generation", 3)
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); peer(there) }()
	run(ctx, here, Config{Interval: interval, Timeout: timeout, Logger: log}, heard)
	there.Close()
	<-done
	return b.String()
}

func TestAHeartbeatLogsHowItEnds(t *testing.T) {
	of := ` guest=db1 generation=3`
	say := func(bytes ...byte) func(net.Conn) {
		return func(c net.Conn) {
			go func() { // it listens, too
				for b := make([]byte, 8); ; {
					if _, err := c.Read(b); err != nil {
						return
					}
				}
			}()
			c.Write(bytes)
		}
	}
	slept := func(time.Time) { time.Sleep(time.Hour) }
	for name, c := range map[string]struct {
		level slog.Level
		peer  func(net.Conn)
		leave time.Duration
		heard func(time.Time)
		want  string
	}{
		"a goodbye":            {slog.LevelInfo, say(beat, goodbye), 0, nil, "level=INFO msg=\"the peer has ended its heartbeat\"" + of + "\n"},
		"silence":              {slog.LevelInfo, say(beat), 0, nil, "level=WARN msg=\"the peer is lost\"" + of + " error=\"heartbeat: peer lost\"\n"},
		"something else":       {slog.LevelInfo, say('X'), 0, nil, "level=WARN msg=\"the peer is lost\"" + of + " error=\"heartbeat: not a heartbeat: byte 0x58\"\n"},
		"an end here":          {slog.LevelDebug, say(beat), interval / 2, nil, "level=DEBUG msg=\"a heartbeat begins\"" + of + " interval=100ms timeout=500ms\nlevel=DEBUG msg=\"the heartbeat ends here\"" + of + " cause=\"enough of it\"\n"},
		"an end, not shown":    {slog.LevelInfo, say(beat), interval / 2, nil, ""},
		"a process that slept": {slog.LevelInfo, say(beat), 0, slept, "level=WARN msg=\"the peer is silent, and this process was late to look: it gets more time\"" + of + " late=59m59.5s\nlevel=WARN msg=\"the peer is lost\"" + of + " error=\"heartbeat: peer lost\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if c.leave > 0 {
					time.AfterFunc(c.leave, func() { cancel(errors.New("enough of it")) })
				}
				if c.heard == nil {
					c.heard = func(time.Time) {}
				}
				if got := logged(t, c.level, c.peer, ctx, c.heard); got != c.want {
					t.Errorf("%s\nwant\n%s", got, c.want)
				}
			})
		})
	}
}

func TestABeatIsNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		time.AfterFunc(time.Minute, cancel)
		got := logged(t, slog.LevelDebug, func(c net.Conn) { Run(ctx, c, interval, timeout) }, ctx, func(time.Time) {})
		if n := bytes.Count([]byte(got), []byte("\n")); n != 2 {
			t.Errorf("%d records of a minute with %d beats:\n%s", n, time.Minute/interval, got)
		}
	})
}

func TestAWatchedPulseBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		here, there := net.Pipe()
		var p Pulse
		done := make(chan error, 2)
		go func() { done <- p.Watch(ctx, here, Config{Interval: interval, Timeout: timeout}) }()
		go func() { done <- Run(ctx, there, interval, timeout) }()
		synctest.Wait()
		if !p.Alive() {
			t.Error("a peer that was heard is not alive")
		}
		cancel()
		<-done
		<-done
	})
}
