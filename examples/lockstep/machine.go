package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A machine is a guest on one of the backends, able to be either side. It is made paused.
type machine interface {
	protect.Guest
	Run(context.Context) error   // runs the vCPUs until the context ends
	Deliver(packet []byte) error // to the guest; an error is a full ring
	Paused() bool                // the guest stands still
	Memory() []byte
	Close() error // after Run
}

// pace is how often a vCPU may send: the guest has nothing else to wait for,
// and would otherwise keep a CPU of the host busy on each side.
const pace = 250 * time.Microsecond

// sender takes what the guest sends; proxy.ErrFull refuses it for the moment.
type sender func(packet []byte) error

// writer is what the guest's port to its disk does: it returns when the guest may go on.
// Nil: the guest has no disk.
type writer func(p []byte, off int64, flush bool) error

// newMachine makes the guest of a side. One that does not boot has no memory yet: the
// guest comes over the wire, all of it.
func newMachine(cfg trial.SideConfig, boot bool, out sender, write writer) (machine, error) {
	if cfg.Backend == "kvm" {
		return newKVMMachine(cfg, boot, out, write)
	}
	return newSimMachine(cfg, boot, out, write)
}

// chooseBackend says which backend auto is here, and why.
func chooseBackend(wanted string) (backend, why string, err error) {
	if wanted == "sim" {
		return "sim", "a guest in Go, as wanted", nil
	}
	switch err := kvm.Probe(); {
	case err == nil:
		return "kvm", "/dev/kvm can create, run and save a VM", nil
	case wanted == "kvm":
		return "", "", fmt.Errorf("-backend kvm: %w", err)
	default:
		return "sim", fmt.Sprintf("a guest in Go, since there is no KVM: %v", err), nil
	}
}

// memory is what a side does with its guest's memory: the primary sends it,
// the secondary stages it.
type memory struct {
	saver    *ram.Saver
	cache    *ram.Cache
	verifier *ram.Verifier // of the log; nil: it is not verified
}

// newMemory takes the memory of a guest and its log.
func newMemory(cfg trial.SideConfig, g machine) (m memory, err error) {
	blocks, log := g.Blocks(), ram.DirtyLog(g)
	if cfg.VerifyDirty {
		m.verifier, err = ram.NewVerifier(blocks, ram.VerifierConfig{Log: log, Paused: g.Paused, Missed: cfg.Missed})
		if err != nil {
			return m, fmt.Errorf("-verify-dirty: %w", err)
		}
		log = m.verifier
	}
	if cfg.Side == trial.Primary {
		m.saver = ram.NewSaver(blocks, log, ram.SaverConfig{})
	} else {
		m.cache, err = ram.NewCache(blocks, log, ram.CacheConfig{})
	}
	if err != nil {
		err = errors.Join(err, m.Close())
	}
	return m, err
}

// Register registers the memory, which comes before any device.
func (m *memory) Register(reg *vmstate.Registry) error {
	if m.saver != nil {
		return m.saver.Register(reg)
	}
	return m.cache.Register(reg)
}

func (m *memory) Sent() colo.PageCounter { return m.saver }

func (m *memory) Stage() colo.Stage { return m.cache }

func (m *memory) Close() error {
	var err error
	if m.cache != nil {
		err = m.cache.Close()
	}
	if m.verifier != nil {
		err = errors.Join(err, m.verifier.Close())
	}
	return err
}
