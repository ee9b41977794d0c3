package main

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// hushed lets a hello through, and nothing after it.
type hushed struct {
	net.Conn
	said bool
}

func (h *hushed) Write(p []byte) (int, error) {
	if h.said {
		return len(p), nil
	}
	h.said = true
	return h.Conn.Write(p)
}

// A host of which nothing comes any more, though its connection stands, as one that is stopped, keeps nobody else's
// guest out. Its own runs on there.
func TestAHostThatSaysNothingAfterItsHelloIsGivenUp(t *testing.T) {
	w := newRoamWorld(t)
	w.silence = 300 * time.Millisecond
	w.broken = func(n int, c net.Conn) net.Conn {
		if n > 1 {
			return c
		}
		return &hushed{Conn: c}
	}
	b := w.roam("b", modeReceive)
	a := w.roam("a", modeMigrate)
	w.has(a)
	w.moves(a)
	if said := w.hears(b, phase("trouble")); !strings.Contains(said, "the other host has sent nothing for 300ms") {
		t.Errorf("host b says %s", said)
	}
	w.hears(a, phase("trouble"))
	w.has(a)
	w.silent(b)
	w.judge()
}

// A guest that runs here may wait for its memory for as long as its host lives.
func TestALinkIsReadForAsLongAsItMayBeSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		bound := time.Minute
		l := &link{Conn: here, raw: here, silence: func() time.Duration { return bound }}
		after := func(d time.Duration) {
			go func() {
				time.Sleep(d)
				there.Write([]byte{1})
			}()
		}
		var b [1]byte
		after(59 * time.Second)
		if n, err := l.Read(b[:]); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		begun := time.Now()
		if n, err := l.Read(b[:]); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("%d, %v, after %v", n, err, time.Since(begun))
		}
		bound = 0
		after(24 * time.Hour)
		if n, err := l.Read(b[:]); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
}
