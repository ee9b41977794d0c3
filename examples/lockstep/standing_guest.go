package main

import (
	"context"
	"sync"

	"github.com/gocolo/lockstep/colo"
)

// standing is the guest of a host whose output is compared with nothing: while it follows
// nobody hears it, so it stands still and costs no CPU time, and no faults of its dirty
// log, beside the primary's guest. Its memory and its devices follow each checkpoint. A
// resume is noted and done once the host is alone. The nil standing is a guest that runs.
type standing struct {
	vm colo.VM

	mu    sync.Mutex
	alone bool // but from follow until failover, which the session calls while the guest is paused
	goes  bool // the machine really runs
}

// Pause implements colo.VM.
func (v *standing) Pause(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.goes {
		return nil // it was made paused
	}
	err := v.vm.Pause(ctx)
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
	err := v.vm.Resume(ctx)
	v.goes = err == nil
	return err
}

// failover says that the next resume is to be carried out.
func (v *standing) failover() { v.set(true) }

// follow says that later resumes are only to be noted. The guest is paused.
func (v *standing) follow() { v.set(false) }

func (v *standing) set(alone bool) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.alone = alone
}
