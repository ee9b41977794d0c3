package colo

import (
	"log/slog"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// Announced reads an announcement from a description, and Announce adds one.
func Announced(text []byte) (checkpointTimeout time.Duration, ok bool) {
	if a := announced(text); a != nil {
		return a.checkpointTimeout(), true
	}
	return 0, false
}

// Announce adds an announcement to a description.
func Announce(text []byte, checkpointTimeout time.Duration) []byte {
	return announcement{announcementVersion, int64(checkpointTimeout)}.announce(text)
}

// Add adds a duration to a figure, as a checkpoint does.
func Add(f *Figure, d time.Duration) { f.add(d) }

// Told returns what publishes a session's events to a log.
func Told(l *slog.Logger) func(event.Event) { return told{log: l, s: new(session)}.Publish }

// LinkRate gives tests the estimate that a primary makes of its link.
type LinkRate struct{ l linkRate }

// Carried tells it of a transfer, PieceTook of a piece; it returns bytes a second, and the
// size of the next piece.
func (r *LinkRate) Carried(bytes int64, took time.Duration) (float64, int) {
	r.l.carried(bytes, took)
	return r.l.bytes(), r.l.piece()
}

// PieceTook tells it how long a piece took.
func (r *LinkRate) PieceTook(bytes int64, took time.Duration) (float64, int) {
	r.l.pieceTook(bytes, took)
	return r.l.bytes(), r.l.piece()
}

// Asking is a session that asks its arbiter. It has a link, and no guest.
type Asking struct{ s session }

// NewAsking returns one.
func NewAsking(l *Link) *Asking {
	return &Asking{session{link: l, machine: new(failover.Machine), quit: make(chan struct{}), fenced: make(chan struct{})}}
}

// Fenced is the operator's word.
func (a *Asking) Fenced() error { return a.s.Fenced() }

// Request and Begin are the steps of a failover that the arbiter has granted.
func (a *Asking) Request() error { return a.s.machine.Request() }

// Begin is the second of them.
func (a *Asking) Begin() error { return a.s.beginGranted() }
