package protect

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/vmstate"
)

// The first beat of a host comes when it knows that its connections are made: a turn of the link after
// the other host does, which may be longer than a host that beats may be silent.
func TestHostsThatAreFartherApartThanLostAreProtected(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 20 * time.Millisecond
		w.term = 10 * time.Second
		w.f.ways = newWays(w.newest, func() time.Duration { return 300 * time.Millisecond })
		near := func(c *Config) { c.Beat, c.Lost = 50*time.Millisecond, 250*time.Millisecond }
		b := w.boot("b", false, near)
		a := w.boot("a", true, near)
		w.comeTogether(a, b)
	})
}

// tardyGuest takes longer than a host may be silent until its devices are registered for a session.
type tardyGuest struct {
	*colotest.VM
	takes time.Duration
	on    *atomic.Bool
}

func (g tardyGuest) Register(reg *vmstate.Registry) error {
	if g.on.Load() {
		time.Sleep(g.takes)
	}
	return g.VM.Register(reg)
}

// What a host makes ready for a session takes as long as it takes: the other host knows that it is
// there, since it has just answered.
func TestAHostMayTakeLongerThanLostToBeReadyForASession(t *testing.T) {
	for _, late := range []string{"a", "b"} {
		bubble(t, late+" is late", func(t *testing.T, w *world) {
			w.guest.Interval = 20 * time.Millisecond
			w.term = 10 * time.Second
			on := new(atomic.Bool)
			slow := func(c *Config) {
				c.Lost, c.PeerTimeout = DefaultLost, 10*DefaultLost
				if c.Host == late {
					c.Guest = tardyGuest{c.Guest.(*colotest.VM), 3 * DefaultLost, on}
				}
			}
			b := w.boot("b", false, slow)
			b.is(Waiting)
			synctest.Wait() // b has made ready what it makes before anybody comes
			on.Store(true)
			a := w.boot("a", true, slow)
			w.comeTogether(a, b)
		})
	}
}

// comeTogether waits until a protects its guest by b, at the first attempt.
func (w *world) comeTogether(a, b *host) {
	w.t.Helper()
	a.is(Protected)
	b.is(Following)
	w.hearsMore()
	if g := a.job.Query().Generation; g != 1 {
		w.t.Errorf("the hosts have lost each other on the way: generation %d", g)
	}
	a.halt()
	b.halt()
}
