package colo

import (
	"context"
	"time"

	"github.com/gocolo/lockstep/event"
)

// Throttler is a VM that can slow its guest down: Throttle keeps every vCPU from
// running for a share of each slice of time, in percent from 0, which ends it, to
// 99. It is called from the goroutine in Run, with the guest paused or not, and
// must not wait for the guest. A VM that fails is not asked again in a session, so
// one that stands in front of another forwards Throttle, and returns an error that
// matches errors.ErrUnsupported where the other cannot.
type Throttler interface{ Throttle(percent int) error }

// The steps of QEMU's auto-converge (cpu-throttle-initial,
// cpu-throttle-increment, max-cpu-throttle).
const (
	throttleFirst = 20
	throttleStep  = 10
	throttleMost  = 99
)

// throttle decides for which share of the time a guest is kept from running.
// Its methods are told what a pass or a checkpoint took. It reads no clock.
type throttle struct {
	most    int // the greatest share, in percent
	percent int
	bad     int // passes in a row that gained little
}

// pass is told of a pass over memory that has sent so many bytes, and after which
// so many were left. A second pass in a row after which more than half is left
// slows the guest down by a step, as in QEMU.
func (t *throttle) pass(sent, left uint64) {
	if left <= sent/2 {
		t.bad = 0
		return
	}
	if t.bad++; t.bad >= 2 {
		t.bad = 0
		t.up()
	}
}

// checkpoint is told how long a checkpoint took (took), how long ago the one
// before began (of), and which share of that time a checkpoint may take. If it
// took more, the guest is slowed down by a step; if it took less than half, the
// guest is let go by a step.
func (t *throttle) checkpoint(took, of time.Duration, share float64) {
	switch busy := float64(took) / float64(max(of, 1)); {
	case busy > share:
		t.up()
	case busy < share/2:
		t.down()
	}
}

func (t *throttle) up() {
	if t.percent == 0 {
		t.percent = min(throttleFirst, t.most)
		return
	}
	t.percent = min(t.percent+throttleStep, t.most)
}

func (t *throttle) down() {
	if t.percent -= throttleStep; t.percent < throttleFirst {
		t.percent = 0
	}
}

// slow passes the share that the throttle has decided to the VM, and publishes
// an event if it has changed. A VM that fails is not asked again.
func (p *Primary) slow() {
	want := p.throttle.percent
	p.mu.Lock()
	have := p.info.Throttle
	p.mu.Unlock()
	if p.throttler == nil || want == have {
		return
	}
	p.hold(undo{what: "throttle", goOn: p.unthrottle, stay: p.unthrottle})
	if err := p.throttler.Throttle(want); err != nil {
		p.throttler.Throttle(0) // as far as it can
		p.throttler, want = nil, 0
	}
	p.throttled(want)
}

// unthrottle lets the guest run freely.
func (p *Primary) unthrottle(context.Context) error {
	if p.throttler == nil {
		return nil
	}
	p.throttle = throttle{most: p.throttle.most}
	p.mu.Lock()
	have := p.info.Throttle
	p.mu.Unlock()
	if have == 0 {
		return nil
	}
	err := p.throttler.Throttle(0)
	if err == nil {
		p.throttled(0)
	}
	return err
}

func (p *Primary) throttled(percent int) {
	p.mu.Lock()
	changed := p.info.Throttle != percent
	p.info.Throttle = percent
	p.mu.Unlock()
	if changed {
		p.events.Publish(event.Throttled{Mode: p.mode, Percent: percent})
	}
}
