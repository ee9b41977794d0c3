package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// hosted is the machine as a protect.Guest: its VM and its dirty log may be wrapped, by
// standing and a verifier.
type hosted struct {
	machine
	vm       colo.VM       // the machine itself, or standing
	log      dirtyLog      // the machine itself, or verifier
	verifier *ram.Verifier // nil: the log is not verified
}

type dirtyLog interface {
	ram.DirtyLog
	ram.LogSwitch
}

// newGuest takes a machine for a job, which may begin after that; Close, before that of the
// machine, gives back what it takes.
func newGuest(cfg trial.SideConfig, m machine, s *standing) (*hosted, error) {
	g := &hosted{machine: m, vm: m, log: m}
	if s != nil {
		g.vm = s
	}
	if cfg.VerifyDirty {
		v, err := ram.NewVerifier(m.Blocks(), ram.VerifierConfig{Log: m, Paused: m.Paused, Missed: cfg.Missed})
		if err != nil {
			return nil, fmt.Errorf("-verify-dirty: %w", err)
		}
		g.log, g.verifier = v, v
	}
	return g, nil
}

// Pause and Resume implement colo.VM.
func (g *hosted) Pause(ctx context.Context) error  { return g.vm.Pause(ctx) }
func (g *hosted) Resume(ctx context.Context) error { return g.vm.Resume(ctx) }

// ReadDirty implements ram.DirtyLog.
func (g *hosted) ReadDirty(block string, bitmap []uint64) error {
	return g.log.ReadDirty(block, bitmap)
}

// StartDirtyLog and StopDirtyLog implement ram.LogSwitch.
func (g *hosted) StartDirtyLog() error { return g.log.StartDirtyLog() }
func (g *hosted) StopDirtyLog() error  { return g.log.StopDirtyLog() }

// KeepDirty implements ram.DirtyKeeper, as far as the log does.
func (g *hosted) KeepDirty(block string, pages []uint64) bool {
	k, ok := g.log.(ram.DirtyKeeper)
	return ok && k.KeepDirty(block, pages)
}

// IdleCPUs implements ram.Idler, as far as the log does.
func (g *hosted) IdleCPUs() int {
	if i, ok := g.log.(ram.Idler); ok {
		return i.IdleCPUs()
	}
	return 0
}

// ForgetDirty implements ram.Forgetter, as far as the log does.
func (g *hosted) ForgetDirty(block string) {
	if f, ok := g.log.(ram.Forgetter); ok {
		f.ForgetDirty(block)
	}
}

// Throttle slows the guest down where its machine can.
func (g *hosted) Throttle(percent int) error {
	if m, ok := g.machine.(colo.Throttler); ok {
		return m.Throttle(percent)
	}
	return errors.ErrUnsupported
}

// Stopped returns how long the guest stood still in its last pause, 0 where its
// machine does not measure it.
func (g *hosted) Stopped() time.Duration {
	if m, ok := g.machine.(colo.Stopper); ok {
		return m.Stopped()
	}
	return 0
}

// Close stops the verifier.
func (g *hosted) Close() error {
	if g.verifier == nil {
		return nil
	}
	return g.verifier.Close()
}
