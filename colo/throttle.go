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

// throttle decides how much a guest is slowed down: it is told how things go and
// says the share. It has no clock.
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

// checkpoint is told how long a checkpoint took, of the time since the one before,
// and of which share that may be. The guest is let go again, a step at a time,
// where it takes less than half of that.
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

// slow makes the VM do what the throttle says, and tells of a change. A VM that
// fails to is left alone from then on.
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
