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
	hearing  chan struct{} // capacity one: held while the networks are being told, which may last

	mu      sync.Mutex // held while no method of the host's is called
	pausing bool       // the guest is being paused
	pauses  int        // not taken back
	stands  bool       // this vm has one pause of the guest to take back
	input   bool       // the guest is the one that the world talks to
	stale   bool       // the networks have not been told of the last change of these
	ran     bool       // they have been told last that the guest runs
	hold    func()     // not nil: Resume leaves it standing, and calls this
	stopped time.Time
	unable  error // by which the guest could not be resumed last; nil: it could, or nobody knows
}

// newVM returns the vm of a guest that is paused; the vm takes that pause back.
func newVM(g Guest, n []Network, d []*Disk) *vm {
	return &vm{guest: g, networks: n, disks: d, turn: make(chan struct{}, 1), hearing: make(chan struct{}, 1), pauses: 1, stands: true}
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
	if !v.isRunning() {
		v.change(func() { v.pauses++ })
		return nil
	}
	now := time.Now()
	v.change(func() { v.pausing, v.stale = true, true })
	err := v.tell(ctx)
	if err == nil {
		err = v.guest.Pause(ctx) // a vCPU may take its time
	}
	if err != nil {
		v.change(func() { v.pausing, v.stale = false, true })
		v.tellOrLeave()
		return err
	}
	v.change(func() {
		v.pausing, v.stands, v.stopped = false, true, now
		v.pauses++
	})
	return nil
}

// Resume implements colo.VM.
func (v *vm) Resume(ctx context.Context) error {
	if err := v.enter(ctx); err != nil {
		return err
	}
	defer v.leave()
	return v.resume(ctx)
}

// resume does what Resume does. The caller has entered.
func (v *vm) resume(ctx context.Context) error {
	resumes, held := false, func() {}
	v.change(func() {
		switch {
		case v.pauses > 1 || !v.stands:
			v.pauses = max(0, v.pauses-1)
		case v.hold != nil:
			v.pauses, held = 0, v.hold
		default:
			resumes = true
		}
	})
	held()
	if !resumes {
		return nil
	}
	if err := v.guest.Resume(ctx); err != nil {
		if ctx.Err() == nil || errors.Is(context.Cause(ctx), context.DeadlineExceeded) { // else it was called off
			v.change(func() { v.unable = err })
		}
		return err
	}
	v.change(func() { v.pauses, v.stands, v.stale, v.unable = 0, false, true, nil })
	v.tell(ctx) // where ctx ends first, whoever is telling them tells them of this as well
	return nil
}

// change changes what mu guards.
func (v *vm) change(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

// tell returns when the networks have been told of the last change, or when ctx ends: they
// may be being told of one before, by a method that does not return.
func (v *vm) tell(ctx context.Context) error {
	select {
	case v.hearing <- struct{}{}:
	case <-ctx.Done():
		v.tellOrLeave() // they may be free as well
		return context.Cause(ctx)
	}
	v.tellNow()
	v.tellOrLeave() // what has changed since
	return nil
}

// tellOrLeave tells the networks of the last change, unless somebody is telling them, who then
// tells them of this one as well: another goroutine, or one that is further up on this stack.
func (v *vm) tellOrLeave() {
	for v.behind() {
		select {
		case v.hearing <- struct{}{}:
			v.tellNow()
		default:
			return
		}
	}
}

// behind reports whether the networks have not been told of the last change.
func (v *vm) behind() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stale
}

// tellNow tells the networks until nothing has changed meanwhile. The caller has taken hearing,
// which tellNow gives back.
func (v *vm) tellNow() {
	defer func() { <-v.hearing }()
	for v.behind() {
		var runs, ran, input bool
		v.change(func() {
			runs, ran = !v.stands && !v.pausing, v.ran
			input = runs && v.input
			v.stale, v.ran = false, runs
		})
		if runs && !ran {
			v.runs(true)
		}
		v.let(input)
		if !runs && ran {
			v.runs(false)
		}
	}
}

// Waits implements colo.Waiter: a vCPU waits for an answer of a disk, at the job's gate.
func (v *vm) Waits() bool {
	return slices.ContainsFunc(v.disks, func(d *Disk) bool {
		p := d.leading()
		return p != nil && p.Gated() > 0
	})
}

// runOn resumes a guest that Resume has left standing, since nobody else will. One that a session has
// paused since is that session's to resume.
func (v *vm) runOn(ctx context.Context) error {
	if !v.isLeft() { // maybe because it is being paused, which may last
		return nil
	}
	if err := v.enter(ctx); err != nil {
		return err
	}
	defer v.leave()
	if !v.isLeft() {
		return nil
	}
	return v.resume(ctx)
}

// isLeft reports whether Resume has left the guest standing, and nobody has paused or resumed it since.
func (v *vm) isLeft() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stands && v.pauses == 0
}

// Throttle implements colo.Throttler, as far as the guest does.
func (v *vm) Throttle(percent int) error {
	if t, ok := v.guest.(colo.Throttler); ok {
		return t.Throttle(percent)
	}
	return fmt.Errorf("protect: throttle a %T: %w", v.guest, errors.ErrUnsupported)
}

// Stopped implements colo.Stopper, as far as the guest does. A guest that was left
// standing has not ended its pause.
func (v *vm) Stopped() time.Duration {
	s, ok := v.guest.(colo.Stopper)
	if !ok || !v.isRunning() {
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

// face says whether the guest is the one that the world talks to, from now on. It does not wait
// for networks that are being told of a change before.
func (v *vm) face(world bool) {
	v.change(func() { v.input, v.stale = world, true })
	v.tellOrLeave()
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

// cannotRun returns the error by which the guest, which stands still, could not be resumed last, if that
// was not because the call was called off.
func (v *vm) cannotRun() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unable
}

// standing returns since when the guest stands still.
func (v *vm) standing() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stopped
}
