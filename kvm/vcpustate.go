//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Sizes of an XSAVE area: without AMX-like state, and the most that is taken
// from a stream.
const (
	xsaveMin = 4096
	xsaveMax = 64 << 10
)

// cpuidTable is struct kvm_cpuid2.
type cpuidTable struct {
	n, _    uint32
	entries [maxCPUID]gokvm.CPUIDEntry2
}

// VCPUState is the state of one vCPU between KVM and a stream. Save fills it from
// a vCPU, VMState carries it, Restore puts it into a vCPU. It is large and meant
// to be kept: what does not change while a guest runs (CPUID, TSC frequency) is
// read once. It belongs to one vCPU and one goroutine at a time.
type VCPUState struct {
	sys  *System
	msrs []uint32 // of sys.msrs, those that this vCPU has
	apic bool     // its local APIC is in the kernel

	apicThere bool // the stream says that it has the state of the local APIC

	// What the vCPU is known to have; an empty table is not known.
	hasCPUID  []gokvm.CPUIDEntry2
	hasTSCKHz uint32
	hasMCG    uint64 // MCG_CAP, since the first Restore, before which a VMM may change it; 0: not known
	mcg       uint64 // the same when msrs was last compared with what the vCPU has; 0: it was not yet

	cpuid  cpuidTable
	tscKHz uint32
	mp     gokvm.MPState
	sregs  gokvm.SRegs2
	regs   gokvm.Regs
	xcrs   gokvm.XCRS
	debug  gokvm.DebugRegs
	lapic  gokvm.LAPICState
	msr    msrTable
	events gokvm.VCPUEvents

	xsaveSize uint32
	xsave     []byte // sys.xsaveSize bytes

	tsc      tsc
	spare    *spare                // on which a state is tried while it is decoded; nil: states are not tried
	flags    uint32                // flags of events that KVM takes here
	kept     uint32                // those of eventsKept that KVM reports here
	distinct []uint32              // the last list of MSRs that was found to have each once, if it is not msrs
	judged   []CPUIDEntry          // the last CPUID table that this host was found able to give a guest
	given    *given                // what the vCPU was given, for any goroutine to read; nil: nobody asks
	inMemory func(gpa uint64) bool // whether the guest has memory there; nil: not known
	refused  []uint32              // MSRs that KVM did not take in the last Restore, and that the vCPU had anyway
	held     *held                 // what the vCPU has and was given by the last Restore; nil: that is not known
	one      msrOne
	some     *msrTable // see scratch
}

// given has what a vCPU was given: its CPUID table, the frequency of its TSC, and its features.
// The states of the vCPU share it.
type given struct {
	cpuid    atomic.Pointer[[]CPUIDEntry] // nil: not known
	khz      atomic.Uint32
	told     atomic.Bool           // cpuid was set by SetCPUID
	sure     atomic.Bool           // cpuid is what KVM was given, and not what it shows
	ran      atomic.Bool           // the vCPU has entered the guest, after which KVM gives it no other CPUID
	synic    atomic.Int32          // whether it was made for Hyper-V's synthetic interrupts
	features atomic.Pointer[[]MSR] // the MSRs that list features, as they were then
}

// NewVCPUState returns a state for a vCPU, which must not run during the call and whose TSC
// frequency must have been chosen. CPUID may follow until the first Save. In a VM with several
// vCPUs the state of each but the first is to Follow the first one's.
func NewVCPUState(sys *System, vcpu int) (*VCPUState, error) {
	s := &VCPUState{sys: sys, msrs: slices.Clone(sys.msrs), xsave: make([]byte, sys.xsaveSize), given: &given{}}
	_, err := ioctl(vcpu, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&s.lapic))
	switch {
	case err == nil:
		s.apic = true
	case !errors.Is(err, unix.EINVAL): // there is none in the kernel
		return nil, err
	}
	if sys.tscKHz {
		khz, err := ioctlValue(vcpu, "KVM_GET_TSC_KHZ", kvmGetTSCKHz, 0)
		if err != nil {
			return nil, err
		}
		s.hasTSCKHz = uint32(khz)
		s.given.khz.Store(s.hasTSCKHz)
	}
	s.tsc.attr = hasTSCOffset(vcpu)
	if _, err := ioctl(vcpu, "KVM_GET_VCPU_EVENTS", kvmGetVCPUEvents, unsafe.Pointer(&s.events)); err != nil {
		return nil, err
	}
	s.flags = s.events.Flags&eventsEnabled | eventsFlags&^eventsEnabled
	s.kept = s.events.Flags & eventsKept
	return s, s.getMSRs(vcpu) // finds out which there are
}

// Save reads the state of a stopped vCPU with no exit pending. The order is events
// first, because reading them settles where a pending exception's address goes (CR2
// or DR6), which the registers are to have; MP state next, because reading it
// settles a pending INIT or SIPI; the local APIC after the MSRs, because any call for the
// vCPU may find that its deadline is over, and then moves its interrupt from the MSR to
// the APIC (better it is saved in both, and the guest finds nothing to do, than in
// neither); and events last once more, as all of these calls have left them.
func (s *VCPUState) Save(vcpu int) error {
	if err := s.saveMost(vcpu); err != nil {
		return err
	}
	return s.saveRest(vcpu)
}

// saveMost saves what nothing changes while the vCPU stands still.
func (s *VCPUState) saveMost(vcpu int) error {
	if err := s.readOnce(vcpu); err != nil {
		return err
	}
	if _, err := ioctl(vcpu, "KVM_GET_VCPU_EVENTS", kvmGetVCPUEvents, unsafe.Pointer(&s.events)); err != nil {
		return err
	}
	if _, err := ioctl(vcpu, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&s.mp)); err != nil {
		return err
	}
	if _, err := ioctl(vcpu, "KVM_GET_REGS", kvmGetRegs, unsafe.Pointer(&s.regs)); err != nil {
		return err
	}
	if err := s.getSregs(vcpu); err != nil {
		return err
	}
	return s.saveLarge(vcpu)
}

// saveLarge is the part of saveMost that follows the registers.
func (s *VCPUState) saveLarge(vcpu int) error {
	if s.nested() {
		return &NotSavedError{"nested virtualization"}
	}
	if err := s.getXSave(vcpu); err != nil {
		return err
	}
	if s.sys.xcrs {
		if _, err := ioctl(vcpu, "KVM_GET_XCRS", kvmGetXCRS, unsafe.Pointer(&s.xcrs)); err != nil {
			return err
		}
	}
	if s.sys.debugRegs {
		if _, err := ioctl(vcpu, "KVM_GET_DEBUGREGS", kvmGetDebugRegs, unsafe.Pointer(&s.debug)); err != nil {
			return err
		}
	}
	if err := s.getMSRs(vcpu); err != nil {
		return err
	}
	if s.shadowStacks() {
		return &NotSavedError{"shadow stacks"}
	}
	return s.saveTSC(vcpu)
}

// saveRest saves what devices and other vCPUs may have changed meanwhile, and the vCPU's
// own timer.
func (s *VCPUState) saveRest(vcpu int) error {
	if s.apic {
		if _, err := ioctl(vcpu, "KVM_GET_LAPIC", kvmGetLAPIC, unsafe.Pointer(&s.lapic)); err != nil {
			return err
		}
	}
	_, err := ioctl(vcpu, "KVM_GET_VCPU_EVENTS", kvmGetVCPUEvents, unsafe.Pointer(&s.events))
	return err
}

// Restore writes the state to a stopped vCPU, which may have run before. The
// interrupt controllers must have been restored, the clock not yet. The order is
// what KVM needs: CPUID before the registers it legalises; how many machine-check banks there are
// before their registers and the local APIC; an NMI, an SMI, an INIT or a start that
// the vCPU was sent and has not looked at are taken back before anything is written; the local APIC before
// the TSC deadline, which its mode decides on; the TSC before the deadline;
// events last, because setting registers drops a pending exception.
//
// It fails with an MSRError for a value that KVM refuses. The vCPU is then
// neither in its old state nor in the new one.
//
// A VM of this package does two things more, which a caller without one does itself: a KVM that
// keeps copies of page tables (see the package's comment) has to drop them, and the CR8 of a vCPU
// without a local APIC in the kernel goes into struct kvm_run too.
func (s *VCPUState) Restore(vcpu int) error {
	if s.tscKHz != 0 && s.hasTSCKHz != 0 && s.tscKHz != s.hasTSCKHz {
		// Refused where frequencies cannot be scaled; the small difference
		// that decoding has let through does not matter then.
		_, err := ioctlValue(vcpu, "KVM_SET_TSC_KHZ", kvmSetTSCKHz, uintptr(s.tscKHz))
		if err != nil && !nearby(s.tscKHz, s.hasTSCKHz) {
			return err
		}
		s.hasTSCKHz = s.tscKHz
		s.given.khz.Store(s.tscKHz)
	}
	if err := s.readCPUID(vcpu); err != nil {
		return err
	}
	h := s.held
	if h == nil || !h.ok {
		h = &held{}
		s.refused = s.refused[:0]
	}
	if entries := s.cpuid.entries[:s.cpuid.n]; !slices.Equal(entries, s.hasCPUID) && !s.keepsCPUID() {
		h = &held{}
		s.refused = s.refused[:0]
		if err := s.setCPUID(vcpu, &s.cpuid); err != nil {
			return err
		}
	}
	if changed, err := s.restoreMCE(vcpu); err != nil {
		return err
	} else if changed {
		h = &held{}
		s.refused = s.refused[:0]
	}
	if err := s.dequeue(vcpu); err != nil {
		return err
	}
	runs := false // the vCPU has been seen to be as s.mp says
	if s.apic {
		// Reading settles an INIT or a SIPI that another vCPU has sent this one, and
		// that the new state would otherwise take.
		var old gokvm.MPState
		if _, err := ioctl(vcpu, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&old)); err != nil {
			return err
		}
		if h.ok {
			settled, err := h.settled(vcpu, old)
			if err != nil {
				return err
			}
			if settled {
				h = &held{}
				s.refused = s.refused[:0]
			}
		}
		runs = h.ok && old == s.mp && old.State == gokvm.MPStateRunnable
	}
	if !runs {
		if _, err := ioctl(vcpu, "KVM_SET_MP_STATE", kvmSetMPState, unsafe.Pointer(&s.mp)); err != nil {
			return err
		}
	}
	// If the call or the state has no PDPTRs, KVM reads them from guest memory, which may be
	// another now.
	pdptrs := s.sys.sregs2 && s.sregs.Flags&sregsFlags != 0
	sregs := h.ok && h.sregs == s.sregs && (pdptrs || !s.paePaging())
	if !sregs {
		if err := s.setSregs(vcpu); err != nil {
			return err
		}
	}
	if _, err := ioctl(vcpu, "KVM_SET_REGS", kvmSetRegs, unsafe.Pointer(&s.regs)); err != nil {
		return err
	}
	if s.sys.xcrs && !(h.ok && h.xcrs == s.xcrs) {
		if _, err := ioctl(vcpu, "KVM_SET_XCRS", kvmSetXCRS, unsafe.Pointer(&s.xcrs)); err != nil {
			return err
		}
	}
	clear(s.xsave[s.xsaveSize:])
	if !h.ok || !h.sameXSave(s) {
		if err := s.setXSave(vcpu); err != nil {
			return err
		}
	}
	if s.sys.debugRegs && !(h.ok && h.debug == s.debug) {
		if _, err := ioctl(vcpu, "KVM_SET_DEBUGREGS", kvmSetDebugRegs, unsafe.Pointer(&s.debug)); err != nil {
			return err
		}
	}
	if s.apic {
		if err := s.setLAPIC(vcpu, &s.lapic); err != nil {
			return err
		}
	}
	if err := s.restoreTSC(vcpu); err != nil {
		return err
	}
	// Some MSRs are other names of a special register.
	if err := s.setMSRs(vcpu, func(i int) bool {
		index := s.msr.entries[i].Index
		return index != msrTSC && index != msrMCGCap && !(sregs && h.has(s, i))
	}, &s.refused); err != nil {
		return err
	}
	events := s.told()
	_, err := ioctl(vcpu, "KVM_SET_VCPU_EVENTS", kvmSetVCPUEvents, unsafe.Pointer(&events))
	return err
}

// readOnce reads the parts of the state that a guest cannot change.
func (s *VCPUState) readOnce(vcpu int) error {
	s.tscKHz = s.hasTSCKHz
	if err := s.readCPUID(vcpu); err != nil {
		return err
	}
	s.cpuid.n = uint32(copy(s.cpuid.entries[:], s.hasCPUID))
	return nil
}

// readCPUID reads the vCPU's table unless it is known.
func (s *VCPUState) readCPUID(vcpu int) error {
	if len(s.hasCPUID) > 0 {
		return nil
	}
	table := &cpuidTable{n: maxCPUID}
	if _, err := ioctl(vcpu, "KVM_GET_CPUID2", kvmGetCPUID2, unsafe.Pointer(table)); err != nil {
		return err
	}
	// Kernels up to 6.1 leave the count as it was and the rest zero.
	for table.n > 0 && table.entries[table.n-1] == (gokvm.CPUIDEntry2{}) {
		table.n--
	}
	s.hasCPUID = slices.Clone(table.entries[:table.n])
	s.regain()
	if s.given != nil {
		s.given.sure.Store(false)
	}
	s.publishCPUID()
	return nil
}

// publishCPUID shows the CPUID table to goroutines that must not touch the state.
func (s *VCPUState) publishCPUID() {
	if s.given != nil {
		table := slices.Clone(s.hasCPUID)
		s.given.cpuid.Store(&table)
	}
}

// setCPUID gives the vCPU a table and remembers it.
func (s *VCPUState) setCPUID(vcpu int, table *cpuidTable) error {
	if _, err := ioctl(vcpu, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(table)); err != nil {
		return err
	}
	s.hasCPUID = append(s.hasCPUID[:0], table.entries[:table.n]...)
	s.regain()
	s.publishCPUID()
	if s.given != nil {
		s.given.sure.Store(true)
	}
	return nil
}

func (s *VCPUState) getSregs(vcpu int) error {
	if s.sys.sregs2 {
		_, err := ioctl(vcpu, "KVM_GET_SREGS2", kvmGetSregs2, unsafe.Pointer(&s.sregs))
		return err
	}
	var old gokvm.Sregs
	if _, err := ioctl(vcpu, "KVM_GET_SREGS", kvmGetSregs, unsafe.Pointer(&old)); err != nil {
		return err
	}
	s.takeSregs(&old)
	return nil
}

// takeSregs takes the special registers in the form of the older call, which has no
// PDPTRs.
func (s *VCPUState) takeSregs(old *gokvm.Sregs) {
	s.sregs = gokvm.SRegs2{
		CS: old.CS, DS: old.DS, ES: old.ES, FS: old.FS, GS: old.GS, SS: old.SS, TR: old.TR, LDT: old.LDT,
		GDT: old.GDT, IDT: old.IDT, CR0: old.CR0, CR2: old.CR2, CR3: old.CR3, CR4: old.CR4, CR8: old.CR8,
		EFER: old.EFER, APICBase: old.ApicBase,
	}
}

// setSregs writes the special registers, and makes KVM forget the translations of addresses that
// the vCPU has used. KVM keeps them where no register changes on which they depend, but a vCPU
// that has run is loaded together with other memory, and so with other page tables under the same
// CR3. So setSregs first writes another CR3: its bit 3 has no meaning to KVM.
func (s *VCPUState) setSregs(vcpu int) error {
	const writeThrough = 1 << 3
	s.sregs.CR3 ^= writeThrough
	err := s.putSregs(vcpu)
	s.sregs.CR3 ^= writeThrough
	if err != nil {
		return err
	}
	return s.putSregs(vcpu)
}

// putSregs writes the special registers. It leaves the interrupt bitmap of the older call empty:
// the events have an interrupt that is being delivered.
func (s *VCPUState) putSregs(vcpu int) error {
	if s.sys.sregs2 {
		_, err := ioctl(vcpu, "KVM_SET_SREGS2", kvmSetSregs2, unsafe.Pointer(&s.sregs))
		return err
	}
	n := &s.sregs
	old := gokvm.Sregs{
		CS: n.CS, DS: n.DS, ES: n.ES, FS: n.FS, GS: n.GS, SS: n.SS, TR: n.TR, LDT: n.LDT,
		GDT: n.GDT, IDT: n.IDT, CR0: n.CR0, CR2: n.CR2, CR3: n.CR3, CR4: n.CR4, CR8: n.CR8,
		EFER: n.EFER, ApicBase: n.APICBase,
	}
	_, err := ioctl(vcpu, "KVM_SET_SREGS", kvmSetSregs, unsafe.Pointer(&old))
	return err
}

// getXSave reads the FPU and vector state. (KVM_GET_FPU and KVM_SET_FPU would lose it, because
// they leave out the header of the area.)
func (s *VCPUState) getXSave(vcpu int) error {
	s.xsaveSize = uint32(len(s.xsave))
	if s.sys.xsave2 {
		_, err := ioctl(vcpu, "KVM_GET_XSAVE2", kvmGetXSave2, unsafe.Pointer(&s.xsave[0]))
		return err
	}
	_, err := ioctl(vcpu, "KVM_GET_XSAVE", kvmGetXSave, unsafe.Pointer(&s.xsave[0]))
	return err
}

// nested reports whether the guest of the state uses nested virtualization.
func (s *VCPUState) nested() bool {
	const eferSVME, cr4VMXE = 1 << 12, 1 << 13
	return s.sregs.EFER&eferSVME != 0 || s.sregs.CR4&cr4VMXE != 0
}

// shadowStacks reports whether the guest of the state uses shadow stacks. KVM has the pointer to
// the one that is in use apart from the MSRs. (Intel SDM volume 1, 17.2; KVM api, "KVM_REG_GUEST_SSP".)
func (s *VCPUState) shadowStacks() bool {
	const cr4CET, userCET, supervisorCET, enabled = 1 << 23, 0x6a0, 0x6a2, 1
	if s.sregs.CR4&cr4CET == 0 {
		return false
	}
	return slices.ContainsFunc(s.msr.entries[:s.msr.n], func(m gokvm.MSREntry) bool {
		return (m.Index == userCET || m.Index == supervisorCET) && m.Data&enabled != 0
	})
}

// checkTSCKHz fails with a CapabilityError if this host cannot give a guest a TSC of the
// frequency in the state.
func (s *VCPUState) checkTSCKHz() error {
	if s.tscKHz == 0 || s.hasTSCKHz == 0 || s.sys.tscControl || nearby(s.tscKHz, s.hasTSCKHz) {
		return nil
	}
	return fmt.Errorf("kvm: the guest's TSC runs at %d kHz, this host's at %d: %w", s.tscKHz, s.hasTSCKHz,
		&CapabilityError{"KVM_CAP_TSC_CONTROL", "another TSC frequency"})
}
