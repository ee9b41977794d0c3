package colo

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/gocolo/lockstep/event"
)

// told passes on the events of a session, to the bus and then to the log. Only the
// goroutine in Run uses it.
type told struct {
	bus *event.Bus
	log *slog.Logger // nil: nobody
	s   *session
}

// Publish passes e to both, and counts for Info how long they have it. Each record of the log has the side and the checkpoint, also
// for an event that does not name them; event.Level gives its level. Nothing is allocated
// if the log does not keep records of that level.
func (t told) Publish(e event.Event) {
	t.s.telling.Store(int64(time.Since(t.s.made)))
	defer t.s.telling.Store(notTelling)
	t.bus.Publish(e)
	if t.log == nil {
		return
	}
	level := event.Level(e)
	if !t.log.Enabled(context.Background(), level) {
		return
	}
	all := event.Attrs(e)
	lacks := func(name string) bool {
		return !slices.ContainsFunc(all, func(a slog.Attr) bool { return a.Key == name })
	}
	if lacks("checkpoint") {
		all = slices.Insert(all, 0, slog.Uint64("checkpoint", t.s.epoch))
	}
	if lacks("side") {
		all = slices.Insert(all, 0, slog.String("side", t.s.mode.String()))
	}
	t.log.LogAttrs(context.Background(), level, e.Name(), all...)
}

// notTelling is session.telling while no event is under way.
const notTelling = -1

// tellingFor returns for how long the event that is under way has been; 0: there is none.
func (s *session) tellingFor() time.Duration {
	if since := s.telling.Load(); since != notTelling {
		return max(time.Since(s.made)-time.Duration(since), 1)
	}
	return 0
}
