package protect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// A vm stands between a session and the guest: it counts the pauses that pass
// through it, keeps the guest's input in step with them, and can keep the guest
// standing where a session would resume it. It knows nothing of pauses that
// others make on the guest itself.
type vm struct {
	guest    Guest
	networks []Network
	disks    []*Disk
	turn     chan struct{} // capacity one: held while the guest is being paused or resumed, which may last

	mu      sync.Mutex
	pausing bool   // the guest is being paused
	pauses  int    // not taken back
	stands  bool   // this vm has one pause of the guest to take back
	input   bool   // the guest is the one that the world talks to
	hold    func() // not nil: Resume leaves it standing, and calls this
	stopped time.Time
}

// newVM returns the vm of a guest that is paused; the vm takes that pause back.
func newVM(g Guest, n []Network, d []*Disk) *vm {
	return &vm{guest: g, networks: n, disks: d, turn: make(chan struct{}, 1), pauses: 1, stands: true}
}

// enter waits for the end of another pause, or resume, for as long as ctx lasts.
func (v *vm) enter(ctx context.Context) error {
	select {
	case v.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (v *vm) leave() { <-v.turn }

// Pause implements colo.VM.
func (v *vm) Pause(ctx context.Context) error {
	if err := v.enter(ctx); err != nil {
		return err
	}
	defer v.leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.stands {
		now := time.Now()
		v.pausing = true
		v.let(false)
		v.runs(false)
		v.mu.Unlock() // a vCPU may take its time
		err := v.guest.Pause(ctx)
		v.mu.Lock()
		v.pausing = false
		if err != nil {
			v.runs(true)
			v.let(v.input)
			return err
		}
		v.stands, v.stopped = true, now
	}
	v.pauses++
	return nil
}

// Resume implements colo.VM.
func (v *vm) Resume(ctx context.Context) error {
	if err := v.enter(ctx); err != nil {
		return err
	}
	defer v.leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.pauses > 1 || !v.stands {
		v.pauses = max(0, v.pauses-1)
		return nil
	}
	if v.hold != nil {
		v.pauses = 0
		v.hold()
		return nil
	}
	v.mu.Unlock()
	err := v.guest.Resume(ctx)
	v.mu.Lock()
	if err != nil {
		return err
	}
	v.pauses, v.stands = 0, false
	v.runs(true)
	v.let(v.input)
	return nil
}

// Waits implements colo.Waiter: a vCPU waits for an answer of a disk, at the job's gate.
func (v *vm) Waits() bool {
	return slices.ContainsFunc(v.disks, func(d *Disk) bool {
		p := d.leading()
		return p != nil && p.Gated() > 0
	})
}

// runOn resumes a guest that Resume has left standing, since nobody else will.
func (v *vm) runOn(ctx context.Context) error {
	v.mu.Lock()
	left := v.stands && v.pauses == 0
	v.mu.Unlock()
	if !left {
		return nil
	}
	return v.Resume(ctx)
}

// Throttle implements colo.Throttler, as far as the guest does.
func (v *vm) Throttle(percent int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t, ok := v.guest.(colo.Throttler); ok {
		return t.Throttle(percent)
	}
	return fmt.Errorf("protect: throttle a %T: %w", v.guest, errors.ErrUnsupported)
}

// Stopped implements colo.Stopper, as far as the guest does. A guest that was left
// standing has not ended its pause.
func (v *vm) Stopped() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.guest.(colo.Stopper)
	if !ok || v.stands {
		return 0
	}
	return s.Stopped()
}

func (v *vm) let(on bool) {
	for _, n := range v.networks {
		n.Input(on)
	}
}

func (v *vm) runs(on bool) {
	sided(v.networks, func(s Sided) error { s.Runs(on); return nil })
}

// face says whether the guest is the one that the world talks to, from now on.
func (v *vm) face(world bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.input = world
	v.let(!v.stands && !v.pausing && world)
}

// keep makes Resume leave the guest standing, and call held, which must not call
// the vm. nil lets it work again; it then resumes nothing itself: the end of a session
// does, or runOn.
func (v *vm) keep(held func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hold = held
}

// isRunning reports whether the guest runs, as far as this package has a say.
func (v *vm) isRunning() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.stands
}

// standing returns since when the guest stands still.
func (v *vm) standing() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stopped
}
