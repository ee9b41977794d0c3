package migrate

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/leaks"
)

// A side whose context has ended before its Run takes nothing and leaves nothing: the guest runs where it ran, and the
// connection is closed, which the other side sees.
func TestAMigrationWhoseContextHasEndedDoesNotBegin(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	for _, postcopy := range []bool{false, true} {
		for _, name := range []string{"source", "destination", "both"} {
			before := leaks.Now(t)
			m := newMove(t, 1)
			if !postcopy {
				m.source.cfg.Postcopy, m.source.cfg.MaxDowntime = false, time.Hour
				m.destination.cfg.Postcopy, m.destination.in.PostcopyRAM = false, false
			}
			of := func(who string) context.Context {
				if name == who || name == "both" {
					return ended
				}
				return t.Context()
			}
			a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
			dst := make(chan error, 1)
			go func() { dst <- m.destination.Run(of("destination"), b) }()
			srcErr := m.source.Run(of("source"), a)
			dstErr := <-dst
			if srcErr == nil || dstErr == nil || errors.Is(srcErr, ErrUnknown) || errors.Is(srcErr, ErrPaused) ||
				name != "destination" && !errors.Is(srcErr, context.Canceled) || name != "source" && !errors.Is(dstErr, context.Canceled) {
				t.Errorf("postcopy %v, %s: %v, %v", postcopy, name, srcErr, dstErr)
			}
			if running, _ := m.src.runs(); !running {
				t.Errorf("postcopy %v, %s: the source's guest stands", postcopy, name)
			}
			if running, n := m.dst.runs(); running || n > 0 {
				t.Errorf("postcopy %v, %s: the destination's guest runs, after %d resumes", postcopy, name, n)
			}
			check(t, m.dst.lazy.Close())
			before.Check(t, "a migration that did not begin")
		}
	}
}
