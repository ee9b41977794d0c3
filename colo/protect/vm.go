package protect

import (
	"context"
	"sync"
	"time"
)

// A vm stands between a session and the guest: it knows whether the guest runs,
// keeps its input in step with that, and can keep it standing where a session
// would resume it.
type vm struct {
	guest    Guest
	networks []Network

	mu      sync.Mutex
	running bool
	input   bool // the guest is the one that the world talks to
	hold    bool // Resume leaves it standing
	held    bool // and has
	stopped time.Time
}

// Pause implements colo.VM.
func (v *vm) Pause(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.running {
		v.stopped = time.Now()
	}
	v.held = false
	v.let(false)
	if err := v.guest.Pause(ctx); err != nil {
		v.let(v.running && v.input)
		return err
	}
	v.running = false
	return nil
}

// Resume implements colo.VM.
func (v *vm) Resume(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hold {
		v.held = true
		return nil
	}
	if err := v.guest.Resume(ctx); err != nil {
		return err
	}
	v.running = true
	v.let(v.input)
	return nil
}

func (v *vm) let(on bool) {
	for _, n := range v.networks {
		n.Input(on)
	}
}

// face says whether the guest is the one that the world talks to, from now on.
func (v *vm) face(world bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.input = world
	v.let(v.running && world)
}

// keep makes Resume leave the guest standing, or lets it work again; it then
// resumes nothing itself.
func (v *vm) keep(standing bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hold = standing
}

// isRunning reports whether the guest runs.
func (v *vm) isRunning() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.running
}

// standing returns since when the guest stands still.
func (v *vm) standing() (since time.Time, held bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stopped, v.held
}
