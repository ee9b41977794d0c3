//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// spares is a VM without memory, whose vCPUs never run: on them a state is tried while
// it is decoded, so that what KVM refuses is known before the guest's own vCPUs are
// touched. It is made when the first state arrives.
type spares struct {
	mu    sync.Mutex
	kvm   int  // a copy of the descriptor of /dev/kvm
	chips bool // interrupt controllers in the kernel
	vm    int  // 0: not made yet
	list  []*spare
	gives []CPUIDEntry // what KVM shows a guest by CPUID; see spare.given
}

// spare is the vCPU of a spare VM that stands for one of the guest's.
type spare struct {
	all   *spares
	id    int // the number of the vCPU
	fd    int // 0: not made yet
	cpuid cpuidTable
	under cpuidTable                 // the table under which it was given MSRs; empty: it was given none
	mcg   uint64                     // MCG_CAP that it was given with them; 0: it was given none
	khz   uint32                     // the frequency of the TSC that it was given; 0: it was given none
	lapic gokvm.LAPICState           // the one that is tried
	asked [msrsAtOnce]gokvm.MSREntry // what obeyed expects
	told  tells
}

// newSpares keeps a descriptor of /dev/kvm, with which a spare VM can be made later, when
// the process may not be able to open /dev/kvm any more.
func newSpares(kvm int, chips bool) (*spares, error) {
	fd, err := unix.FcntlInt(uintptr(kvm), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, &os.SyscallError{Syscall: "fcntl", Err: err}
	}
	return &spares{kvm: fd, chips: chips}, nil
}

// add returns a spare for a vCPU of that ID.
func (p *spares) add(id int) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &spare{all: p, id: id}
	p.list = append(p.list, s)
	return s
}

// close frees the spare VM; no state can be tried any more.
func (p *spares) close() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kvm < 0 {
		return nil
	}
	err := errors.Join(p.drop(), unix.Close(p.kvm))
	p.kvm = -1
	return err
}

// drop closes the spare VM, if there is one. mu is held.
func (p *spares) drop() error {
	var errs []error
	for _, s := range p.list {
		if s.fd > 0 {
			errs = append(errs, unix.Close(s.fd))
		}
		s.fd, s.cpuid, s.under, s.mcg, s.khz, s.told.ok = 0, cpuidTable{}, cpuidTable{}, 0, 0, false
	}
	if p.vm > 0 {
		errs = append(errs, unix.Close(p.vm))
	}
	p.vm = 0
	return errors.Join(errs...)
}

// renew drops the spare VM, so that the next state is tried on a new vCPU, if this vCPU was given
// MSRs under another CPUID table than that, or with other machine-check banks than mcgCap, of which 0
// stands for any. It could still have the value of an MSR that KVM does
// not take under the new ones: the state would pass here, and then fail on the guest's vCPU,
// which does not have that value. The whole VM goes because KVM frees a vCPU only together with
// its VM. all.mu is held.
func (s *spare) renew(table *cpuidTable, mcgCap uint64) error {
	sameBanks := mcgCap == 0 || s.mcg == 0 || mcgCap == s.mcg
	if u := &s.under; u.n == 0 || sameBanks && u.n == table.n && u.entries == table.entries {
		s.under = *table
		return nil
	}
	err := s.all.drop()
	s.under = *table
	return err
}

// open makes the spare's vCPU if there is none yet. all.mu is held.
func (s *spare) open(apic bool, flags uint32) error {
	p := s.all
	if s.fd > 0 {
		return nil
	}
	if p.kvm < 0 {
		return ErrClosed
	}
	if p.vm == 0 {
		vm, err := ioctlValue(p.kvm, "KVM_CREATE_VM", kvmCreateVM, 0)
		if err != nil {
			return err
		}
		if err := prepareSpare(vm, p.chips, apic, flags); err != nil {
			unix.Close(vm)
			return err
		}
		p.vm = vm
	}
	fd, err := ioctlValue(p.vm, "KVM_CREATE_VCPU", kvmCreateVCPU, uintptr(s.id))
	if err != nil {
		return err
	}
	s.fd = fd
	return nil
}

// prepareSpare gives a VM what must be there before its vCPUs: interrupt controllers, or local
// APICs alone if the host emulates the other controllers (KVM_CAP_SPLIT_IRQCHIP), and the reports
// of events that flags asks for.
func prepareSpare(vm int, chips, apic bool, flags uint32) error {
	switch {
	case !chips && apic:
		const pins = 24
		enable := enableCap{cap: capSplitIRQChip, args: [4]uint64{pins}}
		if _, err := ioctl(vm, "KVM_ENABLE_CAP", kvmEnableCap, unsafe.Pointer(&enable)); err != nil {
			return err
		}
	case chips:
		if _, err := ioctlValue(vm, "KVM_CREATE_IRQCHIP", kvmCreateIRQChip, 0); err != nil {
			return err
		}
	}
	return enableEvents(vm, flags)
}

// enableEvents makes KVM report the payload of a pending exception, and a triple fault, if
// flags asks for them and KVM has that.
func enableEvents(vm int, flags uint32) error {
	for _, c := range []struct {
		flag uint32
		cap  uintptr
	}{{eventsPayload, capExceptionPayload}, {eventsTripleFault, capTripleFaultEvent}} {
		if flags&c.flag == 0 || capability(vm, c.cap) == 0 {
			continue
		}
		enable := enableCap{cap: uint32(c.cap), args: [4]uint64{1}}
		if _, err := ioctl(vm, "KVM_ENABLE_CAP", kvmEnableCap, unsafe.Pointer(&enable)); err != nil {
			return err
		}
	}
	return nil
}

// given returns the CPUID table that KVM itself may show a guest: a KVM that runs without
// hardware virtualization can show a vCPU a CPUID of its own instead of the table that was
// set.
func (s *spare) given(supported []CPUIDEntry, apic bool, flags uint32) ([]CPUIDEntry, error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.all.gives != nil {
		return s.all.gives, nil
	}
	if err := s.open(apic, flags); err != nil {
		return nil, fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	table := &cpuidTable{n: uint32(len(supported))}
	copy(table.entries[:], supported)
	s.cpuid = cpuidTable{}
	if _, err := ioctl(s.fd, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(table)); err != nil {
		return nil, fmt.Errorf("kvm: %w", err)
	}
	*table = cpuidTable{n: maxCPUID}
	if _, err := ioctl(s.fd, "KVM_GET_CPUID2", kvmGetCPUID2, unsafe.Pointer(table)); err != nil {
		return nil, fmt.Errorf("kvm: %w", err)
	}
	gives := slices.Clone(supported)
	merge(gives, table.entries[:min(table.n, maxCPUID)])
	s.all.gives = gives
	return gives, nil
}

// merge adds to a table the features of another.
func merge(table, more []CPUIDEntry) {
	for _, w := range cpuidWords {
		if e := findCPUID(table, w.function, w.index); e != nil {
			*reg(e, w.reg) |= cpuidValue(more, w.function, w.index, w.reg)
		}
	}
}

// try finds out whether KVM takes a state, by writing it to the spare's vCPU. The order is that
// of VCPUState.Restore, but for the XSAVE area, for which only the CPUID matters. What that vCPU
// has already is not tried again, nor are general registers alone, which KVM never refuses. MSRs
// that name the guest's memory to KVM are tried as if they were switched off, as the spare VM has no memory. Left out are
// those of Hyper-V, which need a VM that was made for them.
func (s *spare) try(state *VCPUState) error {
	if s == nil {
		return nil
	}
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	banks, _ := state.savedMSR(msrMCGCap)
	if err := s.renew(&state.cpuid, banks); err != nil {
		return fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	if err := s.open(state.apic, state.flags); err != nil {
		return fmt.Errorf("kvm: a VM to try a state on: %w", err)
	}
	refused := func(what string, err error) error {
		if errors.Is(err, ErrState) {
			return err // it names the MSR
		}
		return fmt.Errorf("%w: KVM refuses the %s: %w", ErrState, what, err)
	}
	clear(state.xsave[state.xsaveSize:])
	lapic, events := &s.lapic, state.told()
	if *lapic = state.lapic; state.apic {
		const initialCount = 0x380 // of its timer, which is not to run here
		clear(lapic.Regs[initialCount:][:4])
	}
	had := &s.told
	known := had.ok
	had.ok = false
	if s.cpuid.n != state.cpuid.n || s.cpuid.entries != state.cpuid.entries {
		s.cpuid, known = cpuidTable{}, false
		if _, err := ioctl(s.fd, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(&state.cpuid)); err != nil {
			return refused("CPUID table", err)
		}
		s.cpuid = state.cpuid
	}
	if err := s.tryTSCKHz(state); err != nil {
		return refused("TSC frequency", err)
	}
	if err := s.setupMCE(banks); err != nil {
		return refused("machine-check banks", err)
	}
	same := known && had.same(state, lapic, events)
	if !same {
		if what, err := s.tryRegisters(state); err != nil {
			return refused(what, err)
		}
	}
	if !known || !had.sameXSave(state) {
		if _, err := ioctl(s.fd, "KVM_SET_XSAVE", kvmSetXSave, unsafe.Pointer(&state.xsave[0])); err != nil {
			return refused("XSAVE area", err)
		}
	}
	if err := state.setMSRs(s.fd, func(i int) bool {
		index := state.msr.entries[i].Index
		return tried(index) && index != msrMCGCap && !(same && had.has(state, i))
	}, nil); err != nil {
		return refused("MSRs", err)
	}
	if err := s.trySwitchedOff(state, func(i int) bool {
		return known && i < int(had.msrs.n) && had.msrs.entries[i] == state.msr.entries[i]
	}); err != nil {
		return refused("MSRs", err)
	}
	if err := s.obeyed(state, func(i int) bool { return known && had.has(state, i) }); err != nil {
		return refused("MSRs", err)
	}
	if !same {
		if _, err := ioctl(s.fd, "KVM_SET_VCPU_EVENTS", kvmSetVCPUEvents, unsafe.Pointer(&events)); err != nil {
			return refused("events", err)
		}
	}
	had.take(state, lapic, events)
	return nil
}

// tryTSCKHz tries another frequency of the TSC than that of the guest's vCPU, of which KVM takes as many as the
// processor can scale to. A small difference matters to nobody; see Restore.
func (s *spare) tryTSCKHz(state *VCPUState) error {
	has, want := state.hasTSCKHz, state.tscKHz
	if want == 0 || has == 0 || want == s.khz || nearby(want, has) {
		return nil
	}
	_, err := ioctlValue(s.fd, "KVM_SET_TSC_KHZ", kvmSetTSCKHz, uintptr(want))
	if err == nil {
		s.khz = want
	}
	return err
}

// trySwitchedOff tries the MSRs that name the guest's memory to KVM without the bit that has KVM use it. Those
// for which was returns true were tried before.
func (s *spare) trySwitchedOff(state *VCPUState, was func(i int) bool) error {
	const asyncPF, pvEOI, enabled = 0x4b564d02, 0x4b564d04, 1 // the steal time is between them
	for i := range state.msr.entries[:state.msr.n] {
		m := &state.msr.entries[i]
		if m.Index < asyncPF || m.Index > pvEOI || m.Data == 0 || was(i) {
			continue
		}
		var refused *MSRError
		if err := state.writeMSR(s.fd, m.Index, m.Data&^enabled); errors.As(err, &refused) {
			return &MSRError{m.Index, m.Data}
		} else if err != nil {
			return err
		}
	}
	return nil
}

// keeps reports whether KVM sets an MSR to what it takes, or not at all, so that a value that is
// read back tells which. Of some it keeps less by design, such as 32 bits of SYSENTER_ESP for a guest with the
// CPUID of an AMD processor: of those it says nothing.
func keeps(index uint32) bool {
	const featureControl, specCtrl, debugCtl, tscAux, virtSpecCtrl = 0x3a, 0x48, 0x1d9, 0xc0000103, 0xc001011f
	switch index {
	case featureControl, specCtrl, debugCtl, tscAux, virtSpecCtrl:
		return true
	}
	return index >= msrLaunchKey0 && index <= msrLaunchKey3
}

// obeyed reads back the MSRs that KVM keeps, because KVM may take a value without an error and not
// set it: an MSRError names the first such MSR. Those for which was returns true were read before.
// One that is 0 is not looked at; KVM takes that of MSRs which it keeps at a value of its own.
func (s *spare) obeyed(state *VCPUState, was func(i int) bool) error {
	t := state.scratch()
	for at := 0; at < int(state.msr.n); {
		t.n = 0
		for ; at < int(state.msr.n) && t.n < msrsAtOnce; at++ {
			m := state.msr.entries[at]
			if m.Data != 0 && keeps(m.Index) && !was(at) && !state.unseen(m.Index) {
				t.entries[t.n] = m
				t.n++
			}
		}
		asked := t.n
		if asked == 0 {
			continue
		}
		copy(s.asked[:], t.entries[:asked])
		n, err := ioctl(s.fd, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(t))
		if err != nil {
			return err
		}
		for i, m := range s.asked[:asked] {
			if i >= n || t.entries[i].Data != m.Data { // KVM stops at one that it cannot read
				return &MSRError{m.Index, m.Data}
			}
		}
	}
	return nil
}

// tryRegisters tries what comes before the MSRs, but for the XSAVE area.
func (s *spare) tryRegisters(state *VCPUState) (what string, err error) {
	if _, err := ioctl(s.fd, "KVM_SET_MP_STATE", kvmSetMPState, unsafe.Pointer(&state.mp)); err != nil {
		return "MP state", err
	}
	if err := state.putSregs(s.fd); err != nil {
		return "special registers", err
	}
	if _, err := ioctl(s.fd, "KVM_SET_REGS", kvmSetRegs, unsafe.Pointer(&state.regs)); err != nil {
		return "general registers", err
	}
	if state.sys.xcrs {
		if _, err := ioctl(s.fd, "KVM_SET_XCRS", kvmSetXCRS, unsafe.Pointer(&state.xcrs)); err != nil {
			return "extended control registers", err
		}
	}
	if state.sys.debugRegs {
		if _, err := ioctl(s.fd, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&state.debug)); err != nil {
			return "debug registers", err
		}
	}
	if state.apic {
		if err := state.setLAPIC(s.fd, &s.lapic); err != nil {
			return "local APIC", err
		}
	}
	return "", nil
}

// tried reports whether a value of an MSR can be tried on a spare.
func tried(index uint32) bool {
	const pollControl, asyncPFInt, migrationControl = 0x4b564d05, 0x4b564d06, 0x4b564d08
	switch {
	case index == msrTSC, index == msrTSCDeadline: // KVM takes any value, and the deadline would set a timer
		return false
	case index == pollControl, index == asyncPFInt, index == migrationControl:
		return true
	case index == 0x12, index>>8 == 0x4b564d: // KVM's own, which name memory, or of which nothing is known
		return false
	case index >= 0x40000000 && index < 0x40010000: // Hyper-V's
		return false
	}
	return true
}
