package colo

import (
	"context"
	"log/slog"
	"slices"

	"github.com/gocolo/lockstep/event"
)

// told is who is told of a session's events: the bus, and after it the log. It is
// used by the goroutine in Run only.
type told struct {
	bus *event.Bus
	log *slog.Logger // nil: nobody
	s   *session
}

// Publish tells them. Each record of the log has the side and the checkpoint, also
// of an event that does not name them; see event.Level for what is told how loudly.
// Nothing is allocated for a log that does not keep the record.
func (t told) Publish(e event.Event) {
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
