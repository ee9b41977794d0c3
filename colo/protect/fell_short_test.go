package protect

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// cannotFollow is a guest that cannot be resumed on a host that follows, while ails says so.
type cannotFollow struct {
	Guest
	h    **host
	ails *atomic.Bool
}

func (g cannotFollow) Resume(ctx context.Context) error {
	if g.ails.Load() && (*g.h).job.State() == Following {
		return errors.New("no vCPU")
	}
	return g.Guest.Resume(ctx)
}

// Each try stops the guest, and takes a generation of the arbiter.
func TestASecondaryWhoseGuestCannotRunIsTriedOnceASecond(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 50 * time.Millisecond // this is not about what it says
		var b *host
		var ails atomic.Bool
		ails.Store(true)
		b = w.boot("b", false, func(c *Config) { c.Guest = cannotFollow{c.Guest, &b, &ails} })
		a := w.boot("a", true, nil)
		const seconds = 10
		time.Sleep(seconds * time.Second)
		if n := a.job.Query().Generation; n < 3 || n > seconds+2 {
			t.Errorf("generation %d after %d seconds", n, seconds)
		}
		ails.Store(false)
		a.is(Protected)
		a.halt()
		b.halt()
	})
}
