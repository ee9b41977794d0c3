//go:build linux && amd64

package gokvmhost

import (
	"errors"
	"fmt"

	"github.com/bobuhiro11/gokvm/machine"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/pc"
)

// check returns the number of vCPUs, which is 1 if VCPUs is 0, or what is wrong with cfg.
func (cfg MachineConfig) check() (vcpus int, err error) {
	n := max(cfg.VCPUs, 1)
	if cfg.VCPUs < 0 || n > maxVCPUs {
		return 0, fmt.Errorf("gokvmhost: %d vCPUs, want 1 to %d", cfg.VCPUs, maxVCPUs)
	}
	if cfg.Memory < machine.MinMemSize || cfg.Memory > maxMemory || cfg.Memory%kvm.PageSize != 0 {
		return 0, fmt.Errorf("gokvmhost: %d bytes of memory, want pages of %d and from %d to %d bytes",
			cfg.Memory, kvm.PageSize, machine.MinMemSize, uint64(maxMemory))
	}
	return n, nil
}

// Create makes a Host for a guest that comes from another host or from a file. The Host
// equals one that New and Attach make of a machine to which no devices were added, but gokvm
// has no part in it, and its memory is untouched, where New writes to all of it. The Host is
// paused. Close frees its memory.
func Create(machine MachineConfig, cfg Config) (_ *Host, err error) {
	n, err := machine.check()
	if err != nil {
		return nil, err
	}
	h := &Host{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if h.vm, err = kvm.Create(kvm.Config{
		VCPUs: n, Memory: machine.Memory, DirtyRing: cfg.DirtyRing, CatchUp: cfg.CatchUp, CPUID: cfg.CPUID, Features: cfg.Features, Log: cfg.Log,
	}); err != nil {
		return nil, err
	}
	devices, err := h.devices(parts{}, &own{slots: []slotKind{slotBridge}}, cfg)
	if err != nil {
		return nil, err
	}
	devices.OtherPorts = cfg.OtherPorts
	if h.pc, err = pc.Attach(h.vm, h.vm.Memory(), devices); err != nil {
		return nil, err
	}
	return h, nil
}
