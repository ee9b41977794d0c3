package device

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// seldomApart is how far apart the records of a seldom are at least.
const seldomApart = time.Second

// A seldom logs, at most once in seldomApart, an event that a guest can cause as often
// as it likes, so that the guest cannot fill the host's log.
type seldom struct {
	mu     sync.Mutex
	last   time.Time
	unsaid int // since then
}

// log makes a record, unless the last one was a moment ago; the next record says how
// many were left out.
func (s *seldom) log(l *slog.Logger, level slog.Level, msg string, args ...any) {
	s.mu.Lock()
	now := time.Now()
	if !s.last.IsZero() && now.Sub(s.last) < seldomApart {
		s.unsaid++
		s.mu.Unlock()
		return
	}
	if s.unsaid > 0 {
		args = append(args, "unsaid", s.unsaid)
	}
	s.last, s.unsaid = now, 0
	s.mu.Unlock()
	l.Log(context.Background(), level, msg, args...)
}
