package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A machine is a guest on one of the backends. It is made paused.
type machine interface {
	colo.VM
	Run(context.Context) error   // runs the vCPUs until the context ends
	Deliver(packet []byte) error // to the guest; an error is a full ring
	Register(*vmstate.Registry) error
	Memory() []byte
	Sent() colo.PageCounter // the primary's
	Stage() colo.Stage      // the secondary's
	Close() error           // after Run
}

// pace is how often a vCPU may send: the guest has nothing else to wait for,
// and would otherwise keep a CPU of the host busy on each side.
const pace = 250 * time.Microsecond

// sender takes what the guest sends; proxy.ErrFull refuses it for the moment.
type sender func(packet []byte) error

// newMachine makes the guest of a side.
func newMachine(cfg trial.SideConfig, out sender, disk *disk) (machine, error) {
	if cfg.Backend == "kvm" {
		return newKVMMachine(cfg, out, disk)
	}
	return newSimMachine(cfg, out, disk)
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

// newMemory takes the guest's blocks and their log; paused says whether the guest and its
// devices stand still.
func newMemory(cfg trial.SideConfig, blocks []ram.Block, log ram.DirtyLog, paused func() bool) (m memory, err error) {
	if cfg.VerifyDirty {
		m.verifier, err = ram.NewVerifier(blocks, ram.VerifierConfig{Log: log, Paused: paused, Missed: cfg.Missed})
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
