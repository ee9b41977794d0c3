package main

import (
	"context"
	"fmt"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A machine is a guest on one of the backends, able to be either side. It is made paused.
type machine interface {
	protect.Guest
	ram.LogSwitch
	Run(context.Context) error   // runs the vCPUs until the context ends
	Deliver(packet []byte) error // to the guest; an error is a full ring
	Paused() bool                // the guest stands still
	Memory() []byte
	Close() error // after Run
}

// sender takes what the guest sends; proxy.ErrFull refuses it for the moment.
type sender func(packet []byte) error

// writer carries out a write of the guest to its disk: it returns when the guest may go on.
// Nil: the guest has no disk.
type writer func(p []byte, off int64, flush bool) error

// newMachine makes the guest of a host. One that does not boot has no memory yet: the
// guest comes over the wire, all of it.
func newMachine(cfg trial.SideConfig, out sender, write writer) (machine, error) {
	if cfg.Backend == "kvm" {
		return newKVMMachine(cfg, cfg.Start, out, write)
	}
	return newSimMachine(cfg, cfg.Start, out, write)
}

// chooseBackend returns the backend, which it chooses for auto, and why.
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
