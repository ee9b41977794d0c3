//go:build linux && amd64

package kvm

import (
	"bytes"
	"slices"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// held has the registers that a vCPU which stands still was given last, and so need not be
// given again: a call to KVM for a vCPU loads it onto the CPU first, which may cost ten times
// what it does. A guest that stands still between its checkpoints gets few other registers with
// the next. Only what neither time nor a device changes is here; see elapses.
type held struct {
	ok      bool // the rest is there
	entries uint64
	mp      gokvm.MPState
	regs    gokvm.Regs
	sregs   gokvm.SRegs2
	xcrs    gokvm.XCRS
	debug   gokvm.DebugRegs
	xsave   []byte
	msrs    msrTable
}

// take notes what the vCPU has been given. entries is how often a vCPU of the VM has entered
// the guest.
func (h *held) take(s *VCPUState, entries uint64) {
	h.ok, h.entries = true, entries
	h.mp, h.regs = s.mp, s.regs
	h.sregs, h.xcrs, h.debug = s.sregs, s.xcrs, s.debug
	h.xsave = append(h.xsave[:0], s.xsave...)
	h.msrs.n = uint32(copy(h.msrs.entries[:], s.msr.entries[:s.msr.n]))
}

// stands returns how often a vCPU has entered the guest, and whether none of them is there.
// Only where nobody but this package has the descriptors does that say that nothing has changed:
// known is whether it is so.
func (vm *VM) stands() (entries uint64, known bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.entries, vm.ours && vm.active == 0
}

// settled reports whether a vCPU whose MP state was just read, and is mp, was sent an INIT or a start while
// it stood still. KVM settles them when that is read: the vCPU begins anew, and little is left of what it was
// given. An interrupt controller sends both for devices, and a state can have one that waits. If it is not
// the MP state that tells, the general registers do, which have the values of a reset then.
func (h *held) settled(vcpu int, mp gokvm.MPState) (bool, error) {
	if mp != h.mp {
		return true, nil
	}
	var regs gokvm.Regs
	_, err := ioctl(vcpu, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&regs))
	return regs != h.regs, err
}

// has reports whether the MSR at a place of s need not be set: the vCPU has it, and it is not
// one that elapses, or is 0 and so off, or KVM did not take it before, and the vCPU had it anyway.
func (h *held) has(s *VCPUState, i int) bool {
	m := s.msr.entries[i]
	if i >= int(h.msrs.n) || h.msrs.entries[i] != m { // of another list of MSRs, none is had
		return false
	}
	return !elapses(m.Index) || m.Data == 0 && m.Index != msrTSCDeadline || slices.Contains(s.refused, m.Index)
}

// elapses reports whether an MSR is one whose value may be another by now, or whose writing
// has KVM do something: the clocks' and timers', those by which a guest gives KVM a
// page of its memory, and the counters of events.
func elapses(index uint32) bool {
	const adjust, counters, fixed, global = 0x3b, 0xc1, 0x309, 0x38d
	switch {
	case !tried(index), index == adjust:
		return true
	case index >= counters && index < counters+32, index >= fixed && index < fixed+8, index >= global && index < global+4:
		return true
	case index >= 0x4c1 && index < 0x4c1+32:
		return true
	}
	return false
}

// tells is held for the vCPU of a spare VM, on which states are tried: it never runs, and has
// no more than it was given. What it has taken it takes again.
type tells struct {
	held
	lapic  gokvm.LAPICState
	events gokvm.VCPUEvents
}

// same reports whether the state's registers but the general ones, its local APIC and events are
// what was tried last: on these depends what KVM takes of the rest.
func (h *tells) same(s *VCPUState, lapic *gokvm.LAPICState, events gokvm.VCPUEvents) bool {
	return h.mp == s.mp && h.sregs == s.sregs && h.xcrs == s.xcrs && h.debug == s.debug &&
		h.events == events && h.lapic == *lapic
}

// take notes what the vCPU has taken.
func (h *tells) take(s *VCPUState, lapic *gokvm.LAPICState, events gokvm.VCPUEvents) {
	h.held.take(s, 0)
	h.lapic, h.events = *lapic, events
}

// sameXSave reports whether the vCPU has the FPU and vector state of s.
func (h *held) sameXSave(s *VCPUState) bool { return bytes.Equal(h.xsave, s.xsave) }
