package protect

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// On the way to what an operator has ordered the guest is alone for a moment. That reads as his order,
// and not as a loss.
func TestAnOrderThatEndsTheProtectionDoesNotReadAsALoss(t *testing.T) {
	for order, want := range map[string]string{
		"pause":  "the protection was paused on this host",
		"cancel": "the protection was ended on this host",
	} {
		bubble(t, order, func(t *testing.T, w *world) {
			a, b := w.protected()
			err := error(nil)
			if order == "pause" {
				err = a.job.Pause(t.Context(), "an upgrade")
			} else {
				err = a.job.Cancel(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			if said := a.reasons(); strings.Contains(said, "went on without") || !strings.Contains(said, want) {
				t.Errorf("it says\n%s", said)
			}
			a.halt()
			b.halt()
		})
	}
}

// The guest's writes are on their way to the other host's slow disk when the protection is paused:
// neither host's log calls that a loss.
func TestAPauseWithWritesUnderWayIsNoLossInTheLog(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		var logs [2]bytes.Buffer
		warns := func(i int) func(*Config) {
			return func(c *Config) {
				c.Logger = slog.New(slog.NewTextHandler(&logs[i], &slog.HandlerOptions{Level: slog.LevelWarn}))
			}
		}
		b := w.boot("b", false, warns(1))
		a := w.boot("a", true, warns(0))
		a.is(Protected)
		b.is(Following)
		for range 10 {
			b.image.mu.Lock()
			b.image.slow = 20 * time.Millisecond
			b.image.mu.Unlock()
			time.Sleep(57 * time.Millisecond)
			if err := a.job.Pause(t.Context(), "an upgrade"); err != nil {
				t.Fatal(err)
			}
			b.is(Waiting)
			b.image.mu.Lock()
			b.image.slow = 0
			b.image.mu.Unlock()
			if err := a.job.Resume(); err != nil {
				t.Fatal(err)
			}
			a.is(Protected)
		}
		b.halt()
		a.halt()
		for i, name := range []string{"a", "b"} {
			if s := logs[i].String(); strings.Contains(s, "DISK_BROKEN") || strings.Contains(s, "disk's server") {
				t.Errorf("%s says\n%s", name, s)
			}
		}
	})
}
