//go:build linux && amd64

package gokvmhost

import "github.com/gocolo/lockstep/vmstate/ram"

// A Host is its own dirty log, so that package protect takes it as it is.
var _ interface {
	ram.DirtyLog
	ram.LogSwitch
	ram.DirtyKeeper
	ram.Idler
} = (*Host)(nil)

// ReadDirty adds to bitmap the pages of the guest's memory, a block named kvm.RAMBlock, that vCPUs
// and devices have written since the last call. See kvm.VM.
func (h *Host) ReadDirty(block string, bitmap []uint64) error {
	return h.vm.ReadDirty(block, bitmap)
}

// StartDirtyLog turns the dirty log on. See kvm.VM.
func (h *Host) StartDirtyLog() error { return h.vm.StartDirtyLog() }

// StopDirtyLog turns the dirty log off, and forgets what it held. See kvm.VM.
func (h *Host) StopDirtyLog() error { return h.vm.StopDirtyLog() }

// KeepDirty names the pages that ReadDirty leaves writable from now on: it makes a Host a
// ram.DirtyKeeper. See kvm.VM.
func (h *Host) KeepDirty(block string, pages []uint64) bool { return h.vm.KeepDirty(block, pages) }

// IdleCPUs returns how many CPUs the paused guest leaves idle, one for each vCPU: it makes a
// Host a ram.Idler.
func (h *Host) IdleCPUs() int { return h.vm.IdleCPUs() }
