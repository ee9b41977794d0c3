package protect

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A subscriber that does not return stops the checkpoints, and nothing else says so: the state stays protected.
func TestASubscriberThatDoesNotReturnIsToldOfInTheLogAndByQuery(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var log bytes.Buffer // read when the jobs have ended
		goesOn, waits := make(chan struct{}), make(chan struct{})
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		a.is(Protected)
		b.is(Following)
		once := false
		cancel := event.Subscribe(a.job.cfg.Events, func(event.CheckpointStart) {
			if !once {
				once = true
				close(waits)
				<-goesOn
			}
		})
		<-waits
		patience := a.job.cfg.PeerTimeout
		time.Sleep(patience - time.Millisecond)
		const words = "a subscriber of events, or the handler of the log, has not returned for "
		if err := a.job.Query().LastError; err != nil && strings.Contains(err.Error(), words) {
			t.Errorf("it is told too early: %v", err)
		}
		time.Sleep(patience)
		if in := a.job.Query(); in.LastError == nil || !strings.Contains(in.LastError.Error(), words) || in.Session.Telling < patience {
			t.Errorf("%v, %+v", in.LastError, in.Session)
		}
		close(goesOn)
		time.Sleep(patience)
		cancel()
		if in := a.job.Query(); !in.State.runs() || in.Session != nil && in.Session.Telling != 0 {
			t.Errorf("%v, %+v", in.State, in.Session)
		}
		a.halt()
		b.halt()
		if n := strings.Count(log.String(), "level=WARN msg=\"a subscriber of events does not return\" guest="); n != 1 {
			t.Errorf("it was logged %d times:\n%s", n, &log)
		}
	})
}
