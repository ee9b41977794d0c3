//go:build linux && amd64

package pc

import "github.com/gocolo/lockstep/vmstate/ram"

// A Machine is its own dirty log, so that package protect takes it as it is.
var _ interface {
	ram.DirtyLog
	ram.LogSwitch
	ram.DirtyKeeper
	ram.Idler
} = (*Machine)(nil)

// ReadDirty adds to bitmap the pages of the guest's memory, a block named kvm.RAMBlock, that vCPUs
// and devices have written since the last call. See kvm.VM.
func (m *Machine) ReadDirty(block string, bitmap []uint64) error {
	return m.vm.ReadDirty(block, bitmap)
}

// StartDirtyLog turns the dirty log on. See kvm.VM.
func (m *Machine) StartDirtyLog() error { return m.vm.StartDirtyLog() }

// StopDirtyLog turns the dirty log off, and forgets what it held. See kvm.VM.
func (m *Machine) StopDirtyLog() error { return m.vm.StopDirtyLog() }

// KeepDirty names the pages that ReadDirty leaves writable from now on: it makes a Machine a
// ram.DirtyKeeper. See kvm.VM.
func (m *Machine) KeepDirty(block string, pages []uint64) bool { return m.vm.KeepDirty(block, pages) }

// IdleCPUs returns how many CPUs the paused guest leaves idle, one for each vCPU: it makes a
// Machine a ram.Idler.
func (m *Machine) IdleCPUs() int { return m.vm.IdleCPUs() }
