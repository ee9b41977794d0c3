package main

import (
	"context"
	"sync"
)

// standing is the guest of a secondary whose output is compared with nothing: nobody
// hears it, so it stands still and leaves the CPUs, and the faults of its dirty log, to
// the primary's. Its memory and its devices follow each checkpoint. A resume is noted
// and done once the side is alone.
type standing struct {
	lateVM

	mu    sync.Mutex
	alone bool // from Failover on, which the session calls while the guest is paused
	goes  bool // the machine really runs
}

// Pause implements colo.VM.
func (v *standing) Pause(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.goes {
		return nil // it was made paused
	}
	err := v.lateVM.Pause(ctx)
	v.goes = err != nil
	return err
}

// Resume implements colo.VM.
func (v *standing) Resume(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.alone || v.goes {
		return nil
	}
	err := v.lateVM.Resume(ctx)
	v.goes = err == nil
	return err
}

// failover says that the next resume is meant.
func (v *standing) failover() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.alone = true
}
