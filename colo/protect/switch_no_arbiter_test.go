package protect

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A pair in step goes on while its arbiter is out of reach. Nobody could be granted a guest that is handed
// over then: the order is refused before the guest stands still for it, in the same session.
func TestASwitchoverIsRefusedWhileTheArbiterIsAway(t *testing.T) {
	for name, heeds := range map[string][]string{"the guest would be given up": nil, "the guest would be released": {}} {
		bubble(t, name, func(t *testing.T, w *world) { switchesWithoutArbiter(t, w, heeds) })
	}
}

func switchesWithoutArbiter(t *testing.T, w *world, heeds []string) {
	t.Helper()
	w.heeds = heeds
	a, b := w.protected()
	session := a.job.session()
	for _, h := range []*host{a, b} {
		h.noArbiter.Store(true)
	}
	time.Sleep(2 * a.job.cfg.Term)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.job.Switchover(ctx); err == nil || !strings.Contains(err.Error(), "the guest runs on here: the arbiter does not answer") {
		t.Errorf("%v", err)
	}
	if a.job.State() != Protected || a.job.session() != session {
		t.Fatalf("a is %v, in the same session %v", a.states(), a.job.session() == session)
	}
	w.hearsMore()
	for _, h := range []*host{a, b} {
		h.noArbiter.Store(false)
	}
	time.Sleep(a.job.cfg.Term)
	if err := a.job.Switchover(t.Context()); err != nil {
		t.Error(err)
	}
	b.is(Protected)
	w.hearsMore()
	a.halt()
	b.halt()
}

// It is the host that takes the guest that asks the arbiter then. One that gives it away need not reach it: so a guest
// can be brought away from a host that is cut off.
func TestAHostThatDoesNotReachTheArbiterHandsItsGuestToOneThatDoes(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		a.noArbiter.Store(true)
		time.Sleep(2 * a.job.cfg.Term)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		w.hearsMore()
		a.noArbiter.Store(false)
		a.halt()
		b.halt()
	})
}

// One that reaches the arbiter, whose secondary does not, is told so while its guest runs: it would stand still until that
// host is given up.
func TestASwitchoverToAHostThatWouldNotBeGrantedTheGuestIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		wrong func(w *world, b *host)
		right func(b *host)
		words string
	}{
		"it does not reach the arbiter": {
			func(w *world, b *host) { b.noArbiter.Store(true) },
			func(b *host) { b.noArbiter.Store(false) },
			"the arbiter does not answer b: ",
		},
		"the arbiter does not answer it in time": {
			func(w *world, b *host) { b.slow.Store(int64(8 * time.Second)) },
			func(b *host) { b.slow.Store(0) },
			"the arbiter does not answer b: it has said nothing for 6s",
		},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			a, b := w.protected()
			session := a.job.session()
			c.wrong(w, b)
			time.Sleep(2 * a.job.cfg.Term)
			if err := a.job.Switchover(t.Context()); err == nil || !strings.Contains(err.Error(), "the guest runs on here: "+c.words) {
				t.Errorf("%v", err)
			}
			if a.job.State() != Protected || a.job.session() != session {
				t.Fatalf("a is %v, in the same session %v", a.states(), a.job.session() == session)
			}
			c.right(b)
			time.Sleep(10 * time.Second) // what was asked before is answered by then
			if err := a.job.Switchover(t.Context()); err != nil {
				t.Error(err)
			}
			b.is(Protected)
			w.hearsMore()
			a.halt()
			b.halt()
		})
	}
}

// Two hosts with an arbiter each are found out before the guest stands still.
func TestASwitchoverToAHostThatAsksAnotherArbiterIsRefused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(new(failovertest.Store)) })
		a := w.boot("a", true, nil)
		a.is(Protected)
		b.is(Following)
		session := a.job.session()
		if err := a.job.Switchover(t.Context()); err == nil || !errors.Is(err, errElsewhere) || !strings.Contains(err.Error(), "the guest runs on here") || !strings.Contains(err.Error(), "on b it knows of generation 0") {
			t.Errorf("%v", err)
		}
		if a.job.State() != Protected || a.job.session() != session {
			t.Errorf("a is %v, in the same session %v", a.states(), a.job.session() == session)
		}
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// The question is asked again where it is not heard.
func TestTheQuestionWhetherTheArbiterAnswersIsAskedAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var lost atomic.Int64
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			dialBy(c, func(conn net.Conn) net.Conn { return losesNote{conn, sayReach, &lost} })
		})
		a.is(Protected)
		b.is(Following)
		lost.Store(2)
		if err := a.job.Switchover(t.Context()); err != nil || lost.Load() > 0 {
			t.Errorf("%v; %d are still to be lost", err, lost.Load())
		}
		b.is(Protected)
		w.hearsMore()
		a.halt()
		b.halt()
	})
}

// losesNote is a connection that loses the next notes of a kind.
type losesNote struct {
	net.Conn
	say  string
	next *atomic.Int64
}

func (c losesNote) Write(p []byte) (int, error) {
	if strings.Contains(string(p), `"`+c.say+`"`) && c.next.Add(-1) >= 0 {
		return len(p), nil
	}
	return c.Conn.Write(p)
}
