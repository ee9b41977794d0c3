package protect

import (
	"bytes"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A swallowed is a connection of which nothing arrives any more while away is set, if it is
// one for control.
type swallowed struct {
	net.Conn
	away    *atomic.Bool
	all     *atomic.Bool // and not only the first of a session
	control atomic.Bool
	again   atomic.Bool
}

func (c *swallowed) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"channel":"control"`)) {
		c.control.Store(true)
	}
	if bytes.Contains(p, []byte(`"channel":"control-again"`)) {
		c.again.Store(true)
	}
	if (c.control.Load() || c.again.Load() && c.all.Load()) && c.away.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// A control connection that loses everything, and does not end, is noticed by both hosts, and
// neither the session nor the guest ends for it. It is told, a switchover is refused before the guest
// stands still, and what the connection carries counts again when there is another.
func TestAControlConnectionThatFallsSilentIsNoticedAndMadeAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var away, all atomic.Bool
		b := w.boot("b", false, nil)
		synctest.Wait() // b is there for the first connection, so that nothing is noted of it
		a := w.boot("a", true, func(c *Config) {
			dialBy(c, func(conn net.Conn) net.Conn { return &swallowed{Conn: conn, away: &away, all: &all} })
		})
		a.is(Protected)
		b.is(Following)
		mute := func(h *host) (mute bool) {
			p := h.job.session().peer
			p.get(func() { mute = p.mute })
			return mute
		}
		time.Sleep(10 * time.Second)
		if mute(a) || mute(b) || a.job.Query().LastError != nil || b.job.Query().LastError != nil {
			t.Errorf("%v and %v of a connection that is heard: %v, %v", mute(a), mute(b), a.job.Query().LastError, b.job.Query().LastError)
		}
		session := a.job.session()
		silence := a.job.cfg.Term + a.job.cfg.Lost + w.term/2
		away.Store(true)
		time.Sleep(silence)
		for _, h := range []*host{a, b} {
			if err := h.job.Query().LastError; !mute(h) || err == nil || !strings.Contains(err.Error(), "is silent") {
				t.Errorf("%s: %v, %v", h.name, mute(h), err)
			}
		}
		a.is(Protected)
		b.is(Following)
		time.Sleep(2 * a.job.cfg.Lost)
		if mute(a) || mute(b) || a.job.session() != session {
			t.Errorf("when it is made again: %v, %v, the same session %v", mute(a), mute(b), a.job.session() == session)
		}
		promised(t, a, b)
		away.Store(false)
		all.Store(true) // the new one is silent as well
		away.Store(true)
		time.Sleep(silence)
		before := w.heard()
		err := a.job.Switchover(t.Context())
		if err == nil || !strings.Contains(err.Error(), "silent") || a.job.Query().Stats.Switchovers != 0 {
			t.Errorf("a switchover that nobody would hear: %v, %+v", err, a.job.Query().Stats)
		}
		away.Store(false)
		a.is(Protected) // with another connection
		b.is(Following)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if w.heard() == before {
			t.Error("nothing leaves")
		}
		w.clean()
		a.halt()
		b.halt()
	})
}
