package migrate

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A source whose guest has gone would run it here as well if the other side refused it the second time.
func TestAMigrationIsRunOnce(t *testing.T) {
	for _, postcopy := range []bool{false, true} {
		runOnce(t, postcopy)
	}
}

func runOnce(t *testing.T, postcopy bool) {
	t.Helper()
	m := newMove(t, 1)
	if !postcopy {
		m.source.cfg.Postcopy, m.source.cfg.MaxDowntime = false, time.Hour
		m.destination.cfg.Postcopy, m.destination.in.PostcopyRAM = false, false
	}
	m.run()
	m.arrived()
	for name, run := range map[string]func(Conn) error{
		"source":      func(c Conn) error { return m.source.Run(t.Context(), c) },
		"destination": func(c Conn) error { return m.destination.Run(t.Context(), c) },
	} {
		a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		b.Close() // a Run that goes on finds that at once
		if err := run(a); !errors.Is(err, ErrEnded) {
			t.Errorf("%s: %v, want %v", name, err, ErrEnded)
		}
		if _, err := a.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: a write to its connection: %v", name, err)
		}
	}
	if p, q := m.source.Progress(), m.destination.Progress(); p.Status != StatusCompleted || q.Status != StatusCompleted {
		t.Errorf("afterwards they are %v and %v", p.Status, q.Status)
	}
	m.arrived()
}
