package proxy_test

import (
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A dammed connection keeps what it has read for as long as it is dammed.
type dammed struct {
	net.Conn

	mu   sync.Mutex
	cond *sync.Cond
	shut bool
}

func (d *dammed) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.shut {
		d.cond.Wait()
	}
	return n, err
}

func (d *dammed) dam(shut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = shut
	d.cond.Broadcast()
}

// The marker of an epoch is late, and comes before the guests say anything in the next one,
// or does not.
func TestAConnectionIsStalledNoMoreOnceAMarkerHasCome(t *testing.T) {
	for _, comes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.end()
			a, b := net.Pipe()
			d := &dammed{Conn: a}
			d.cond = sync.NewCond(&d.mu)
			defer d.dam(false)
			w.join(d, b)
			w.checkpoint()
			d.dam(true)
			w.checkpoint()
			time.Sleep(2 * time.Second)
			w.checkpoint()
			var want []event.Cause
			if comes {
				d.dam(false)
				synctest.Wait()
			} else {
				want = []event.Cause{event.CauseDivergence}
			}
			w.requests()
			w.say(w.pg, "a")
			if r := w.requests(); !slices.Equal(r, want) {
				t.Errorf("a marker comes=%t: asked for %v at once", comes, r)
			}
			if w.say(w.sg, "a"); comes {
				w.wantLeft("both have said it", w.pw, "a")
			}
		})
	}
}

// The guests speak in the first epoch only, or also in the one in which the connection is
// replaced.
func TestOnlyAGuestThatHasBeenSilentSinceItsCommitIsHeardByANewConnectionAtOnce(t *testing.T) {
	for _, silent := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.end()
			w.connect()
			w.checkpoint()
			w.say(w.sg, "a")
			w.say(w.pg, "a")
			w.checkpoint()
			left := []string{"a"}
			if !silent {
				w.say(w.sg, "b")
				w.say(w.pg, "b")
				left = append(left, "b")
			}
			w.wantLeft("by the connection before", w.pw, left...)
			w.connect()
			if silent {
				left = append(left, "c") // since the marker was sent again
			}
			w.say(w.sg, "c")
			w.say(w.pg, "c")
			w.wantLeft("by the new one", w.pw, left...)
		})
	}
}
