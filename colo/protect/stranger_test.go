package protect

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A host that is told nothing, since its certificate is for another name or the two do not agree
// about TLS, says what that may be; and the host that turns a certificate away says so itself, once.
func TestAHostThatIsTurnedAwayWithoutAWordSaysWhatThatMayBe(t *testing.T) {
	ours := newAuthority(t)
	connect := func(address string, cfg *tls.Config) error {
		c := Config{Peer: Peer{Dial: address, Name: "b", PortConfig: PortConfig{TLS: cfg, Insecure: cfg == nil}}}
		conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g", Host: "a"})
		if err == nil {
			conn.Close()
		}
		return err
	}
	secure, err1 := Listen("127.0.0.1:0", PortConfig{TLS: ours.host(t, "b")})
	plain, err2 := Listen("127.0.0.1:0", PortConfig{Insecure: true})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer served(t, secure)()
	defer served(t, plain)()
	job := &sink{name: "a"}
	if err := secure.register("g", job); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"another name", connect(secure.Addr().String(), ours.host(t, "c")), "Peer.Name is not the name in the certificate here"},
		{"no TLS here", connect(secure.Addr().String(), nil), "as a host does that wants TLS"},
		{"no TLS there", connect(plain.Addr().String(), ours.host(t, "a")), "as a host without TLS does"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) || !isEnd(c.err) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
	// The host that dials may know that it is turned away before the other has said why.
	job.told(1)
	job.mu.Lock()
	defer job.mu.Unlock()
	if len(job.strangers) != 1 || !strings.Contains(job.strangers[0].Error(), "valid for c, not a") {
		t.Errorf("%v", job.strangers)
	}
}

func TestACertificateForAnotherNameIsToldOnceUpToTheNextConnection(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		var log lines
		b := w.boot("b", false, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		b.is(Waiting)
		names := errors.New("valid for c, not a" + strings.Repeat(", nor for another", 1000))
		for range 3 {
			b.job.isStranger(names)
		}
		if n := log.with(`level=WARN msg="a host is turned away" guest=guest`, "valid for c, not a"); n != 1 {
			t.Errorf("%d warnings: %q", n, log.all())
		}
		if err := b.job.Query().LastError; err == nil || len(err.Error()) > maxNote {
			t.Error(err)
		}
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		b.job.isStranger(io.EOF)
		if n := log.with(`msg="a host is turned away"`); n != 2 {
			t.Errorf("%d warnings: %q", n, log.all())
		}
		b.halt()
		a.halt()
	})
}
