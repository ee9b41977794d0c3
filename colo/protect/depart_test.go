package protect

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// clogged is a network that gets nothing out any more.
type clogged struct{ Network }

func (clogged) Drain(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// slowToPause is a guest that cannot be paused in time, so many times.
type slowToPause struct {
	*colotest.VM
	times int
}

func (g *slowToPause) Pause(ctx context.Context) error {
	if g.times > 0 {
		g.times--
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return g.VM.Pause(ctx)
}

// A host that leaves gives the guest back, and leaves it standing, however long what comes before has
// taken: each has its own time, also where a term is longer than PeerTimeout.
func TestAHostThatLeavesGivesTheGuestBackThoughItsOutputIsStuck(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"the output is stuck":      func(c *Config) { c.Network[0] = clogged{c.Network[0]} },
		"the guest does not pause": func(c *Config) { c.Guest = &slowToPause{c.Guest.(*colotest.VM), 1} },
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval = 20 * time.Millisecond
			w.term = 30 * time.Second
			a := w.boot("a", true, func(c *Config) {
				c.PeerTimeout = 5 * time.Second
				change(c)
			})
			a.is(Alone)
			a.stop(errHalt)
			<-a.done
			if r, err := w.store.Load(t.Context()); err != nil || r.Held() {
				t.Errorf("%+v, %v", r, err)
			}
			if a.job.vm.isRunning() || !errors.Is(a.err, errHalt) {
				t.Errorf("the guest runs: %v; %v", a.job.vm.isRunning(), a.err)
			}
			a.leave()
		})
	}
}
