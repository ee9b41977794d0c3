package protect

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// pausing is a guest of which each pause is told before it is made.
type pausing struct {
	*colotest.VM
	f func() error
}

func (g pausing) Pause(ctx context.Context) error {
	if err := g.f(); err != nil {
		return err
	}
	return g.VM.Pause(ctx)
}

// unannounced is a connection that loses the word that a checkpoint is the last one, which a primary of
// another version does not say, nor one whose guest's output is compared.
type unannounced struct{ net.Conn }

func (c unannounced) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(`"say":"last"`)) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// entrusting switches a guest over without an arbiter, to a host that has to pause it first, since
// it is told to go on when it has committed the last checkpoint, of which it did not know that it is
// one. That pause is meanwhile, with how often it was tried before.
func entrusting(w *world, meanwhile func(a, b *host, before int64) error) (a, b *host, err error) {
	w.t.Helper()
	var tried atomic.Int64
	late := &slowly{each: 1050 * time.Millisecond} // between two checkpoints
	b = w.boot("b", false, func(c *Config) {
		c.Arbiter = nil
		c.Guest = pausing{c.Guest.(*colotest.VM), func() error {
			if s := b.job.session(); s == nil || s.primary != nil || !s.wasHanded() {
				return nil
			}
			return meanwhile(a, b, tried.Add(1)-1)
		}}
	})
	a = w.boot("a", true, func(c *Config) {
		c.Arbiter = nil
		dialBy(c, func(conn net.Conn) net.Conn { return unannounced{conn} })
		c.Network = []Network{slowNIC{paced: c.Network[0].(paced), s: late}}
	})
	a.is(Protected)
	b.is(Following)
	late.on.Store(true)
	err = a.job.Switchover(w.t.Context())
	late.on.Store(false)
	if tried.Load() == 0 {
		w.t.Fatalf("the guest of the host that was told to go on was not paused: %v, a %v, b %v", err, a.states(), b.states())
	}
	return a, b, err
}

// An operator says a word where both hosts stand still and ask. A host to which the guest was handed
// over does not ask, and goes on when its guest is paused, however long that takes.
func TestAHostThatIsHandedTheGuestWithoutAnArbiterTakesItOverAndDoesNotAsk(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, err := entrusting(w, func(_, b *host, before int64) error {
			if before > 0 {
				return nil
			}
			time.Sleep(5 * time.Second)
			if q := b.job.Query(); q.State != TakingOver || q.Reason != "a hands the guest over" {
				t.Errorf("b is %v: %s", q.State, q.Reason)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		if states := b.states(); strings.Contains(states, "asking") || !strings.Contains(states, "following taking-over alone") {
			t.Errorf("b: %v", states)
		}
		w.hearsMore()
		b.halt()
		a.halt()
	})
}

// One that leaves meanwhile says so, and the guest runs on where it ran.
func TestAHostThatIsHandedTheGuestWithoutAnArbiterAndLeavesSaysSo(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b, err := entrusting(w, func(_, b *host, before int64) error {
			b.stop(errHalt)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "the guest runs on here") || !strings.Contains(err.Error(), "b cannot") {
			t.Errorf("%v", err)
		}
		a.is(Alone)
		if b.halt(); !strings.HasSuffix(b.states(), "following taking-over concluded") {
			t.Errorf("b: %v", b.states())
		}
		w.hearsMore()
		a.halt()
	})
}

// The other host may have gone on meanwhile, by a word of which the operator has made sure that it
// is safe. A host that is reached by that one gives up what it was handed, and follows.
func TestAHostThatIsHandedTheGuestAndHearsThatTheOtherGoesOnGivesItUp(t *testing.T) {
	for _, fenced := range []bool{false, true} {
		bubble(t, fmt.Sprint("fenced ", fenced), func(t *testing.T, w *world) {
			a, b, err := entrusting(w, func(a, b *host, before int64) error {
				if before > 0 {
					return nil
				}
				a.is(Asking) // b has said nothing for too long
				order := a.job.Failover
				if fenced {
					order = a.job.Fenced
				}
				if err := order(); err != nil {
					t.Error(err)
				}
				a.is(Alone)
				time.Sleep(5 * time.Second)
				return nil
			})
			if err == nil {
				t.Error("the switchover is said to have come about")
			}
			a.is(Protected)
			b.is(Following)
			if states := b.states(); !strings.Contains(states, "taking-over waiting following") {
				t.Errorf("b: %v", states)
			}
			w.hearsMore()
			b.halt()
			a.halt()
		})
	}
}
