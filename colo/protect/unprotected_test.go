package protect

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// said returns the events of a type that a host has published.
func said[E event.Event](h *host) (all []E) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e, ok := e.(E); ok {
			all = append(all, e)
		}
	}
	return all
}

// with counts the lines of a log that have all of some words.
func (l *lines) with(words ...string) (n int) {
lines:
	for _, line := range l.all() {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

// A guest that stays unprotected because the two hosts do not fit is no secret of Query:
// whoever listens, or reads the log, is told why, once.
func TestWhyTheOtherHostDoesNotFollowIsToldOnce(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 50 * time.Millisecond // this is not about what it says
		var log lines
		b := w.boot("b", false, func(c *Config) { c.Machine = "q35" })
		a := w.boot("a", true, func(c *Config) { c.Machine, c.Logger = "pc", slog.New(slog.NewTextHandler(&log, nil)) })
		a.is(Alone)
		time.Sleep(5 * time.Second)
		all := said[event.ProtectionRefused](a)
		if len(all) != 1 || all[0].Mode != event.ModePrimary || !strings.Contains(all[0].Error, `"q35"`) {
			t.Errorf("%+v", all)
		}
		if n := log.with("level=WARN msg=PROTECTION_REFUSED guest=guest generation=1 side=primary", "q35"); n != 1 {
			t.Errorf("%d warnings: %q", n, log.all())
		}
		b.halt()
		b = w.boot("b", false, func(c *Config) { c.Machine = "pc" })
		a.is(Protected)
		if all := said[event.ProtectionRefused](a); len(all) != 1 {
			t.Errorf("%+v", all)
		}
		a.halt()
		b.halt()
	})
}

// Hosts that change sides, or have just begun, may be refused for a moment.
func TestARefusalThatPassesIsNotTold(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 50 * time.Millisecond // this is not about what it says
		b := w.boot("b", false, func(c *Config) { c.Machine = "q35" })
		a := w.boot("a", true, func(c *Config) { c.Machine = "pc" })
		a.is(Alone)
		time.Sleep(maxRedial / 2)
		b.halt()
		b = w.boot("b", false, func(c *Config) { c.Machine = "pc" })
		a.is(Protected)
		if all := said[event.ProtectionRefused](a); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		a.halt()
		b.halt()
	})
}

func TestAHostThatNobodyAnswersSaysSoOnce(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 50 * time.Millisecond // this is not about what it says
		var log lines
		a := w.boot("a", true, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		a.is(Alone)
		time.Sleep(5 * time.Second)
		if n := log.with(`level=INFO msg="the other host is not reached" guest=guest generation=1 side=primary checkpoint=0`, "error="); n != 1 {
			t.Errorf("%d times: %q", n, log.all())
		}
		if all := said[event.ProtectionRefused](a); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		a.halt()
	})
}
