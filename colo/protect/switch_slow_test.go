package protect

import (
	"cmp"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// slowly is a host on which each thing that a switchover waits for takes a while, from when it
// is told so.
type slowly struct {
	on   atomic.Bool
	each time.Duration
}

func (s *slowly) wait() {
	if s.on.Load() {
		time.Sleep(s.each)
	}
}

// slowGuest is slow to be paused.
type slowGuest struct {
	*colotest.VM
	s *slowly
}

func (g slowGuest) Pause(ctx context.Context) error {
	g.s.wait()
	return g.VM.Pause(ctx)
}

// slowNIC is slow to say that all has left, and then the arbiter of whichever host has to ask is slow.
type slowNIC struct {
	paced
	s    *slowly
	asks *host // nil: the primary asks
}

func (n slowNIC) Drain(ctx context.Context) error {
	n.s.wait()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if n.s.on.Load() {
		cmp.Or(n.asks, n.h).slow.Store(int64(n.s.each)) // it is asked once
	}
	return n.paced.Drain(ctx)
}

// What a switchover waits for on its own host may take its time, each of it nearly as long as
// is waited for anything: that is not taken for something that does not end.
func TestASwitchoverOfWhichEachStepIsSlowIsMade(t *testing.T) {
	for name, heeds := range map[string][]string{"the guest is released": {}, "the guest is given up": nil} {
		bubble(t, name, func(t *testing.T, w *world) { slowSwitchover(t, w, heeds) })
	}
}

func slowSwitchover(t *testing.T, w *world, heeds []string) {
	t.Helper()
	w.heeds = heeds
	w.guest.Interval = 20 * time.Millisecond
	w.term = 30 * time.Second
	slow := &slowly{each: 3 * time.Second}
	b := w.boot("b", false, nil)
	var asks *host
	a := w.boot("a", true, func(c *Config) {
		c.PeerTimeout = slow.each + time.Second
		g := c.Guest.(*colotest.VM)
		n := c.Network[0].(paced)
		if asks = b; heeds != nil {
			asks = n.h
		}
		c.Guest, c.Network = slowGuest{g, slow}, []Network{slowNIC{n, slow, asks}}
	})
	a.is(Protected)
	b.is(Following)
	slow.on.Store(true)
	if err := a.job.Switchover(t.Context()); err != nil {
		t.Errorf("%v", err)
	}
	slow.on.Store(false)
	asks.slow.Store(0)
	b.is(Protected)
	a.is(Following)
	if d := a.job.Query().Stats.Downtime; d < 3*slow.each-time.Millisecond {
		t.Errorf("the guest stood still for %v, so not each step was slow", d)
	}
	w.hearsMore()
	a.halt()
	b.halt()
}
