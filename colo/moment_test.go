package colo_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// moment is a step of one side.
type moment struct {
	mode  event.Mode
	op    string
	epoch uint64
}

func (m moment) String() string { return fmt.Sprintf("%s %s of checkpoint %d", m.mode, m.op, m.epoch) }

// moments returns the steps of a run of each manner, in order, up to checkpoint
// 2.
func moments(t testing.TB) (some []moment) {
	var list []moment
	t.Helper()
	for _, m := range manners {
		x := watched(t, m, func(_ *pair, at moment) {
			if at.epoch <= 2 && !slices.Contains(list, at) && at.op != "take over" {
				list = append(list, at)
			}
		}, options{})
		x.close()
	}
	for i := 0; i < len(list); i += 1 + sparse()/3 {
		some = append(some, list[i])
	}
	return some
}

// watched runs a pair like cutRun does and calls do at each step, on the
// session's goroutine, one step at a time.
func watched(t testing.TB, m manner, do func(*pair, moment), o options) *pair {
	t.Helper()
	var x *pair
	turn := make(chan struct{}, 1)
	step := func(mode event.Mode, h func() *host) func(string, uint64) {
		return func(op string, epoch uint64) {
			h().step(1)
			turn <- struct{}{}
			defer func() { <-turn }()
			do(x, moment{mode, op, epoch})
		}
	}
	primary, secondary := o.primary, o.secondary
	o.primary = func(c *colo.PrimaryConfig) {
		m.apply(c)
		c.Step = step(event.ModePrimary, func() *host { return x.p })
		if primary != nil {
			primary(c)
		}
	}
	o.secondary = func(c *colo.SecondaryConfig) {
		c.Step = step(event.ModeSecondary, func() *host { return x.s })
		if secondary != nil {
			secondary(c)
		}
	}
	x = newPair(t, o)
	defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
		if c.Epoch == checkpoints {
			x.pc.Break()
		}
	})()
	x.start(t.Context())
	x.wait()
	return x
}

func (x *pair) side(m event.Mode) (*host, runner) {
	if m == event.ModePrimary {
		return x.p, x.primary
	}
	return x.s, x.secondary
}

func other(m event.Mode) event.Mode {
	if m == event.ModePrimary {
		return event.ModeSecondary
	}
	return event.ModePrimary
}
