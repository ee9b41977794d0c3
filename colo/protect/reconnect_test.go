package protect

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// goesOn checks that the pair has a control connection again, in the session that it had, and
// ends both hosts.
func goesOn(t *testing.T, a, b *host, session *session) {
	t.Helper()
	promised(t, a, b)
	if a.job.session() != session {
		t.Error("it is another session")
	}
	a.halt()
	b.halt()
}

// promised wants a pair whose control connection carries promises.
func promised(t *testing.T, a, b *host) {
	t.Helper()
	time.Sleep(a.job.cfg.Term)
	for _, h := range []*host{a, b} {
		p := h.job.session().peer
		p.get(func() {
			if p.mute || p.gone {
				t.Errorf("%s: mute %v, gone %v", h.name, p.mute, p.gone)
			}
		})
	}
	p := b.job.session().peer
	p.get(func() {
		if left := time.Until(p.pledge); left < a.job.cfg.Term/2 {
			t.Errorf("the last promise has %v left", left)
		}
	})
}

// control returns the control connection of a host's session.
func control(h *host) (conn net.Conn) {
	p := h.job.session().peer
	p.get(func() { conn = p.control })
	return conn
}

// again returns what the host of a session says to have its control connection made again.
func again(h *host) hello {
	p := h.job.session().peer
	return hello{Channel: chAgain, Guest: h.job.cfg.Name, Generation: p.generation, Host: h.name, Token: p.token}
}

// Nobody but the primary of the session has its control connection replaced.
func TestAStrangerDoesNotReplaceAControlConnection(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		was := control(b)
		for name, change := range map[string]func(*hello){
			"no token":          func(h *hello) { h.Token = "" },
			"another token":     func(h *hello) { h.Token += "x" },
			"an old generation": func(h *hello) { h.Generation-- },
			"a later one":       func(h *hello) { h.Generation++ },
			"another host":      func(h *hello) { h.Host = "c" },
		} {
			h := again(a)
			change(&h)
			conn, _, err := dial(t.Context(), &a.job.cfg, h)
			var refused *RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "belongs to no session") {
				t.Errorf("%s: %v, %v", name, conn, err)
			}
		}
		// Nor does anybody replace that of a primary.
		conn, _, err := dial(t.Context(), &b.job.cfg, again(b))
		if err == nil {
			t.Errorf("a primary takes %v", conn)
		}
		if control(b) != was {
			t.Error("the control connection is another")
		}
		promised(t, a, b)
		a.halt()
		b.halt()
	})
}

// One that cannot be made again yet is tried again, and the session and the guest do not wait.
func TestAControlConnectionIsTriedAgainUntilItIsThere(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var away atomic.Bool
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			dial := c.Peer.Dialer
			c.Peer.Dialer = func(ctx context.Context) (net.Conn, error) {
				if away.Load() {
					return nil, errDead
				}
				return dial(ctx)
			}
		})
		a.is(Protected)
		b.is(Following)
		session := a.job.session()
		away.Store(true)
		control(a).Close()
		time.Sleep(20 * time.Second)
		if err := a.job.Query().LastError; !errors.Is(err, errDead) {
			t.Errorf("%v", err)
		}
		w.hearsMore()
		away.Store(false)
		time.Sleep(2 * maxRedial)
		goesOn(t, a, b, session)
	})
}

// Several that come at once leave one, whichever it is, and the primary makes it again if that
// is not its own.
func TestOfControlConnectionsThatComeAtOnceOneIsLeft(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		session := a.job.session()
		var group sync.WaitGroup
		control(a).Close()
		time.Sleep(a.job.cfg.Lost) // a is about to make it again
		for range 3 {
			group.Go(func() {
				if conn, _, err := dial(t.Context(), &a.job.cfg, again(a)); err == nil {
					time.Sleep(10 * time.Second) // this one says nothing
					conn.Close()
				}
			})
		}
		group.Wait()
		time.Sleep(10 * time.Second)
		goesOn(t, a, b, session)
	})
}

// A switchover during which the control connection ends is carried out or given up, and none is
// made again for a session that ends.
func TestAControlConnectionThatEndsInASwitchoverIsNotMadeAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.heeds = []string{}
		a, b := w.protected()
		session := a.job.session()
		a.on(SwitchingOver, func() { control(a).Close() })
		// What the other host is told does not arrive. If the guest has been released by then,
		// whoever asks the arbiter first goes on with it.
		err := a.job.Switchover(t.Context())
		if err == nil {
			t.Error("no error")
		} else if !strings.Contains(err.Error(), "the guest runs on here") {
			a, b = b, a
		}
		a.is(Protected)
		b.is(Following)
		session.peer.get(func() {
			if session.peer.again {
				t.Error("it was made again")
			}
		})
		w.hearsMore()
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Errorf("the next: %v", err)
		}
		b.is(Protected)
		a.halt()
		b.halt()
	})
}

// One that ends while the other host is asked whether its arbiter answers ends the switchover, at once, and not the
// session, for which it is made again.
func TestAControlConnectionThatEndsBeforeTheGuestStandsStillIsMadeAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		session := a.job.session()
		a.on(SwitchingOver, func() { control(a).Close() })
		begin := time.Now()
		if err := a.job.Switchover(t.Context()); err == nil || !strings.Contains(err.Error(), "the guest runs on here") {
			t.Errorf("%v", err)
		}
		if d := time.Since(begin); d > a.job.cfg.Lost {
			t.Errorf("it took %v", d)
		}
		if a.job.State() != Protected || a.job.session() != session {
			t.Fatalf("a is %v, in the same session %v", a.states(), a.job.session() == session)
		}
		if err := session.peer.await(t.Context(), func() bool { return session.peer.again }); err != nil {
			t.Fatal(err)
		}
		w.hearsMore()
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Errorf("the next: %v", err)
		}
		b.is(Protected)
		a.halt()
		b.halt()
	})
}

// tellsEnd is a connection that notes its end.
type tellsEnd struct {
	net.Conn
	ends *atomic.Int64
}

func (c tellsEnd) Close() error { c.ends.Add(1); return c.Conn.Close() }

// One that comes while another is about to take the place of the old is not forgotten.
func TestAControlConnectionThatIsReplacedIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(hello{})
		var ends [4]atomic.Int64
		conn := func(i int) net.Conn {
			here, there := net.Pipe()
			t.Cleanup(func() { there.Close() })
			return tellsEnd{here, &ends[i]}
		}
		p.control = conn(0)
		p.write <- struct{}{} // a note is being written
		var group sync.WaitGroup
		for i := 1; i < len(ends); i++ {
			c := conn(i)
			group.Go(func() { p.replace(c, func() bool { return true }) })
		}
		synctest.Wait()
		<-p.write
		group.Wait()
		p.close()
		for i := range ends {
			if ends[i].Load() == 0 {
				t.Errorf("connection %d stays open", i)
			}
		}
	})
}
