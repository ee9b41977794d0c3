//go:build linux && amd64

package kvm

import (
	"bytes"
	"slices"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// held has the registers that a vCPU was given last and still has, because it stands still, and
// that need not be given again: a call to KVM for a vCPU loads the vCPU onto a CPU first, which
// may cost ten times what the call itself does. If the guest of a secondary stands still between
// checkpoints, few of its registers differ in the next. Only what neither time nor a device
// changes is here; see elapses.
type held struct {
	ok      bool // the other fields are valid
	entries uint64
	mp      gokvm.MPState
	regs    gokvm.Regs
	sregs   gokvm.SRegs2
	xcrs    gokvm.XCRS
	debug   gokvm.DebugRegs
	xsave   []byte
	msrs    msrTable
}

// take notes what the vCPU has been given. entries is how often vCPUs of the VM have entered the
// guest by now.
func (h *held) take(s *VCPUState, entries uint64) {
	h.ok, h.entries = true, entries
	h.mp, h.regs = s.mp, s.regs
	h.sregs, h.xcrs, h.debug = s.sregs, s.xcrs, s.debug
	h.xsave = append(h.xsave[:0], s.xsave...)
	h.msrs.n = uint32(copy(h.msrs.entries[:], s.msr.entries[:s.msr.n]))
}

// stands returns how often vCPUs have entered the guest. known reports whether the same number,
// seen again, means that no register has changed: no vCPU is in the guest, and nobody but this
// package has the descriptors.
func (vm *VM) stands() (entries uint64, known bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.entries, vm.ours && vm.active == 0
}

// settled reports whether a vCPU was sent an INIT or a start-up interrupt (SIPI) while it stood
// still. mp is its MP state, which was just read: by that KVM settles both, the vCPU begins anew,
// and little is left of what it was given. An interrupt controller sends both for devices, and a
// state can have one that waits. If the MP state is the one that the vCPU was given, the general
// registers tell: they have the values of a reset then.
func (h *held) settled(vcpu int, mp gokvm.MPState) (bool, error) {
	if mp != h.mp {
		return true, nil
	}
	var regs gokvm.Regs
	_, err := ioctl(vcpu, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&regs))
	return regs != h.regs, err
}

// has reports whether the MSR at place i of s need not be set, because the vCPU was given the
// same value. It must be set all the same if it elapses, but for two cases: it is 0, and so off;
// or KVM did not take it before, and the vCPU had the value anyway.
func (h *held) has(s *VCPUState, i int) bool {
	m := s.msr.entries[i]
	if i >= int(h.msrs.n) || h.msrs.entries[i] != m { // in a list with other MSRs no place agrees
		return false
	}
	return !elapses(m.Index) || m.Data == 0 && m.Index != msrTSCDeadline || slices.Contains(s.refused, m.Index)
}

// elapses reports whether an MSR must be written even if it was given the same value before: time
// or an event may have changed it since, or writing it has KVM do something. Such are the MSRs of
// clocks and timers, those by which a guest gives KVM a page of its memory, and the counters of
// events.
func elapses(index uint32) bool {
	const adjust, counters, fixed, global = 0x3b, 0xc1, 0x309, 0x38d
	switch {
	case !tried(index), index == adjust:
		return true
	case index >= counters && index < counters+32, index >= fixed && index < fixed+8, index >= global && index < global+4:
		return true
	case index >= 0x4c1 && index < 0x4c1+32:
		return true
	case index >= 0xc0010004 && index < 0xc0010008, index >= 0xc0010200 && index < 0xc0010220, index>>2 == 0xc0000300>>2: // AMD's
		return true
	}
	return false
}

// tells has the registers that the vCPU of a spare VM was given last, as held has them for the
// guest's vCPU. States are tried on that vCPU (see spares). It never runs, so it still has what
// it was given, and takes again what it took once.
type tells struct {
	held
	lapic  gokvm.LAPICState
	events gokvm.VCPUEvents
}

// same reports whether the MP state, special, extended and debug registers, local APIC and events
// are those that were tried last. On these depends what KVM takes of the rest.
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
