package protect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A host tells of its own certificate before the other one refuses it, once, and again when it has ended; one that was
// renewed in time is no news, and neither is one of a short life that has most of it before it.
func TestACertificateThatEndsIsToldOfBefore(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name    string
		from    time.Duration // before now
		until   time.Duration // from now on
		renewed time.Duration // when another one takes its place; 0: never
		want    []string      // "DAY: the first words", of 30 days
	}{
		{"a year's, that ends", 345 * day, 20 * day, 0, []string{"13: is valid until", "20: was valid until"}},
		{"a year's, renewed in time", 345 * day, 20 * day, 10 * day, nil},
		{"a year's, renewed late", 345 * day, 20 * day, 15 * day, []string{"13: is valid until"}},
		{"ended", 345 * day, -20 * day, 0, []string{"0: was valid until"}},
		{"of a clock that is ahead", -2 * day, 365 * day, 0, []string{"0: is not valid before"}},
		{"of ten days", 0, 10 * day, 0, []string{"9: is valid until", "10: was valid until"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				authority := newAuthority(t)
				made := func(from, until time.Duration) *tls.Certificate {
					cfg := authority.hostWith(t, "a", func(x *x509.Certificate) {
						x.NotBefore, x.NotAfter = time.Now().Add(-from), time.Now().Add(until)
					})
					return &cfg.Certificates[0]
				}
				var shown atomic.Pointer[tls.Certificate]
				shown.Store(made(c.from, c.until))
				begun := time.Now()
				var mu sync.Mutex
				var told []string
				j := &Job{cfg: Config{Name: "g"}}
				j.cfg.Logger = slog.New(tells{slog.DiscardHandler, func(r slog.Record) {
					mu.Lock()
					defer mu.Unlock()
					r.Attrs(func(a slog.Attr) bool {
						if words, ok := strings.CutPrefix(a.Value.String(), "protect: the certificate of this host "); ok {
							told = append(told, fmt.Sprintf("%d: %s", time.Since(begun)/day, words))
						}
						return true
					})
				}})
				ctx, cancel := context.WithTimeout(t.Context(), 30*day)
				defer cancel()
				if c.renewed > 0 {
					time.AfterFunc(c.renewed, func() { shown.Store(made(0, 365*day)) })
				}
				j.watchCertificate(ctx, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil }})
				if !slices.EqualFunc(told, c.want, strings.HasPrefix) {
					t.Errorf("told %q, want %q", told, c.want)
				}
				if last := j.lastErr; (last != nil) != (len(c.want) > 0) {
					t.Errorf("the last error is %v", last)
				}
			})
		})
	}
}

// tells is a handler that passes records to a function.
type tells struct {
	slog.Handler
	tell func(slog.Record)
}

func (h tells) Enabled(context.Context, slog.Level) bool      { return true }
func (h tells) Handle(_ context.Context, r slog.Record) error { h.tell(r); return nil }
func (h tells) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h tells) WithGroup(string) slog.Handler                 { return h }

// A job looks at the certificate that its port shows.
func TestAJobTellsOfACertificateThatHasEnded(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		ended := newAuthority(t).hostWith(t, "a", func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Hour) })
		a := w.boot("a", true, func(c *Config) { c.Peer.Name, c.Peer.Port.cfg = "b", PortConfig{TLS: ended} })
		synctest.Wait()
		if err := a.job.Query().LastError; err == nil || !strings.Contains(err.Error(), "the certificate of this host was valid until ") {
			t.Errorf("the last error is %v", err)
		}
		a.halt()
	})
}
