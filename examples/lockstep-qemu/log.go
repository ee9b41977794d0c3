package main

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
)

// logLevel is the flag -log: the least level of a record that is written.
type logLevel struct {
	on bool
	slog.Level
}

// Set takes the level of a flag by its name, in lower case as -h lists them.
func (l *logLevel) Set(s string) error {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if s == strings.ToLower(level.String()) {
			l.on, l.Level = true, level
			return nil
		}
	}
	if s == "off" {
		l.on = false
		return nil
	}
	return fmt.Errorf("it is debug, info, warn, error or off")
}

// String returns the flag's value.
func (l *logLevel) String() string {
	if !l.on {
		return "off"
	}
	return strings.ToLower(l.Level.String())
}

// logger writes records of that level and above to stderr, where a service's log is
// taken from: as key=value, or as JSON where everything is. Nil: it is off.
func (l logLevel) logger(p *printer) *slog.Logger {
	if !l.on {
		return nil
	}
	o := &slog.HandlerOptions{Level: l.Level}
	if p.json {
		return slog.New(slog.NewJSONHandler(records{p}, o))
	}
	return slog.New(slog.NewTextHandler(records{p}, o))
}

// records writes each record as a line of its own among what a printer says.
type records struct{ p *printer }

var _ io.Writer = records{}

func (r records) Write(b []byte) (int, error) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.line.Clear(r.p.out)
	return r.p.err.Write(b)
}

// logOf returns a logger whose records also have these attributes; nil stays nil.
func logOf(l *slog.Logger, attrs ...any) *slog.Logger {
	if l == nil {
		return nil
	}
	return l.With(attrs...)
}

// guestLog returns the logger for the guest, which names the directory of its standby. Nil:
// nothing is logged.
func (s *standbyRun) guestLog() *slog.Logger {
	name := s.state
	if whole, err := filepath.Abs(name); err == nil {
		name = whole
	}
	return logOf(s.log.logger(s.p), "guest", filepath.Base(name))
}

// sessionLog returns guestLog for the session that has begun: with the generation, if there
// is an arbiter.
func (s *standbyRun) sessionLog() *slog.Logger {
	l := s.guestLog()
	if s.arbiterOf == nil {
		return l
	}
	return logOf(l, "generation", s.began.Generation)
}
