package protect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// depart leaves the guest paused, and gives it back, to whoever can have it. Each step has a time
// of its own, so that a step which takes long does not keep the guest from being given back, nor
// from standing still.
func (j *Job) depart(ctx context.Context) error {
	j.vm.face(false)
	ctx = context.WithoutCancel(ctx)
	limit := min(j.cfg.Term, j.cfg.PeerTimeout)
	if j.keeper.Gate().Open() {
		j.empty(ctx, limit)
	}
	e := bounded(ctx, limit, func(ctx context.Context) error { return j.keeper.Release(ctx, "left by "+j.cfg.Host) })
	if e != nil && !errors.Is(e, failover.ErrRefused) {
		j.note(fmt.Errorf("release: %w", e)) // its term runs out
	}
	// The gate stays shut: a write that is not answered yet never is, and a vCPU
	// that waits for that cannot be paused.
	j.fenceDisks()
	if j.vm.isRunning() {
		return bounded(ctx, j.cfg.PeerTimeout, j.vm.Pause)
	}
	return nil
}

// empty pauses the guest and lets out what may leave, for as long as a grant lasts, and no longer than limit.
func (j *Job) empty(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if j.vm.isRunning() {
		if err := j.vm.Pause(ctx); err != nil {
			j.note(fmt.Errorf("pause: %w", err)) // tried again
			return
		}
	}
	j.letOut(ctx)
}

// letOut lets out what may leave, for as long as a grant lasts. The guest stands still.
func (j *Job) letOut(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, j.cfg.Term)
	defer cancel()
	if err := nets(j.cfg.Network).Drain(ctx); err != nil {
		j.note(fmt.Errorf("drain: %w", err))
	}
}
