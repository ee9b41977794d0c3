//go:build linux && amd64

package kvm

import (
	"fmt"
	"slices"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/vmstate"
)

// VMState names the fields of the state, for a vmstate.Registry. State that this
// host could not restore is refused here, with an error that wraps [ErrState], a
// [CapabilityError] or an error of package vmstate.
func (s *VCPUState) VMState(f *vmstate.Fields) {
	f.Uint32("tsc_khz", &s.tscKHz)
	f.Uint32("cpuid_entries", &s.cpuid.n)
	cpuid := vmstate.Elems(f, s.cpuid.entries[:], uint64(s.cpuid.n))
	f.Info("cpuid", "kvm_cpuid_entry2", raw(&s.cpuid.entries[0], len(cpuid)))
	f.Uint32("mp_state", &s.mp.State)
	s.segmentFields(f)
	s.regFields(f)
	f.Uint32("xcrs", &s.xcrs.NrXRCS)
	for i := range vmstate.Elems(f, s.xcrs.Registers[:], uint64(s.xcrs.NrXRCS)) {
		f.Uint32("xcr", &s.xcrs.Registers[i].XRC)
		f.Uint64("xcr_value", &s.xcrs.Registers[i].Value)
	}
	f.Uint32("xsave_size", &s.xsaveSize)
	f.Info("xsave", "kvm_xsave", vmstate.Elems(f, s.xsave, uint64(s.xsaveSize)))
	f.Uint64s("db", s.debug.DB[:])
	f.Uint64("dr6", &s.debug.DR6)
	f.Uint64("dr7", &s.debug.DR7)
	s.apicThere = s.apic
	f.Bool("lapic_present", &s.apicThere)
	if s.apicThere {
		f.Info("lapic", "kvm_lapic_state", s.lapic.Regs[:])
	}
	f.Uint32("msrs", &s.msr.n)
	msrs := vmstate.Elems(f, s.msr.entries[:], uint64(s.msr.n))
	f.Info("msr", "kvm_msr_entry", raw(&s.msr.entries[0], len(msrs)))
	s.eventFields(f)
	s.tscFields(f)
	if f.Loading() && f.Err() == nil {
		err := s.check(s.apicThere)
		if err == nil {
			s.dropDisabled()
			err = s.spare.try(s)
		}
		f.Fail(err)
	}
}

func (s *VCPUState) segmentFields(f *vmstate.Fields) {
	r := &s.sregs
	all := [...]*gokvm.Segment{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS, &r.TR, &r.LDT}
	f.StructArray("segments", "kvm/segment", 1, len(all), func(i int, f *vmstate.Fields) {
		g := all[i]
		f.Uint64("base", &g.Base)
		f.Uint32("limit", &g.Limit)
		f.Uint16("selector", &g.Selector)
		f.Uint8("type", &g.Typ)
		f.Uint8("present", &g.Present)
		f.Uint8("dpl", &g.DPL)
		f.Uint8("db", &g.DB)
		f.Uint8("s", &g.S)
		f.Uint8("l", &g.L)
		f.Uint8("g", &g.G)
		f.Uint8("avl", &g.AVL)
		f.Uint8("unusable", &g.Unusable)
	})
	f.Uint64("gdt_base", &r.GDT.Base)
	f.Uint16("gdt_limit", &r.GDT.Limit)
	f.Uint64("idt_base", &r.IDT.Base)
	f.Uint16("idt_limit", &r.IDT.Limit)
	f.Uint64("cr0", &r.CR0)
	f.Uint64("cr2", &r.CR2)
	f.Uint64("cr3", &r.CR3)
	f.Uint64("cr4", &r.CR4)
	f.Uint64("cr8", &r.CR8)
	f.Uint64("efer", &r.EFER)
	f.Uint64("apic_base", &r.APICBase)
	f.Uint64("sregs_flags", &r.Flags)
	f.Uint64s("pdptrs", r.PDptrs[:])
}

func (s *VCPUState) regFields(f *vmstate.Fields) {
	r := &s.regs
	f.Uint64("rax", &r.RAX)
	f.Uint64("rbx", &r.RBX)
	f.Uint64("rcx", &r.RCX)
	f.Uint64("rdx", &r.RDX)
	f.Uint64("rsi", &r.RSI)
	f.Uint64("rdi", &r.RDI)
	f.Uint64("rsp", &r.RSP)
	f.Uint64("rbp", &r.RBP)
	f.Uint64("r8", &r.R8)
	f.Uint64("r9", &r.R9)
	f.Uint64("r10", &r.R10)
	f.Uint64("r11", &r.R11)
	f.Uint64("r12", &r.R12)
	f.Uint64("r13", &r.R13)
	f.Uint64("r14", &r.R14)
	f.Uint64("r15", &r.R15)
	f.Uint64("rip", &r.RIP)
	f.Uint64("rflags", &r.RFLAGS)
}

func (s *VCPUState) eventFields(f *vmstate.Fields) {
	e := &s.events
	f.Uint8("exception_injected", &e.E.Inject)
	f.Uint8("exception_nr", &e.E.Nr)
	f.Uint8("exception_has_error_code", &e.E.HadErrorCode)
	f.Uint8("exception_pending", &e.E.Pending)
	f.Uint32("exception_error_code", &e.E.ErrorCode)
	f.Uint8("interrupt_injected", &e.I.Inject)
	f.Uint8("interrupt_nr", &e.I.Nr)
	f.Uint8("interrupt_soft", &e.I.Soft)
	f.Uint8("interrupt_shadow", &e.I.Shadow)
	f.Uint8("nmi_injected", &e.N.Inject)
	f.Uint8("nmi_pending", &e.N.Pending)
	f.Uint8("nmi_masked", &e.N.Masked)
	f.Uint32("sipi_vector", &e.SipiVector)
	f.Uint32("events_flags", &e.Flags)
	f.Uint8("smm", &e.S.SMM)
	f.Uint8("smi_pending", &e.S.Pening)
	f.Uint8("smm_inside_nmi", &e.S.SMMInsideNMI)
	f.Uint8("smi_latched_init", &e.S.LatchedInit)
	f.Uint8("triple_fault", &e.TripleFault)
	f.Uint8("exception_has_payload", &e.ExceptionHasPayload)
	f.Uint64("exception_payload", &e.ExceptionPayload)
}

// Bits that check looks at (Intel SDM volume 3, 2.5 and 4.1; linux/kvm.h).
const (
	cr0PE, cr0NW, cr0CD, cr0PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
	cr4PAE                     = 1 << 5
	eferLME, eferLMA           = 1 << 8, 1 << 10

	mpStateLast       = 4                                 // KVM_MP_STATE_SIPI_RECEIVED
	eventsFlags       = 0x3f                              // KVM_VCPUEVENT_VALID_*
	eventsPayload     = 1 << 4                            // KVM_VCPUEVENT_VALID_PAYLOAD
	eventsTripleFault = 1 << 5                            // KVM_VCPUEVENT_VALID_TRIPLE_FAULT
	eventsEnabled     = eventsPayload | eventsTripleFault // what KVM is asked to report of a VM
	sregsFlags        = 1                                 // KVM_SREGS2_FLAGS_PDPTRS_VALID
	xcr0FPU           = 1
	xcr0CPUIDFn       = 0xd
	upperHalf         = ^uint64(0xffffffff)
	xsaveHeaders      = 576 // legacy region and XSAVE header
)

// check refuses what KVM would refuse, as far as that can be known before.
func (s *VCPUState) check(apic bool) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrState, fmt.Sprintf(format, a...))
	}
	r, e := &s.sregs, &s.events
	lacks := e.Flags & eventsEnabled &^ s.flags
	long := r.EFER&eferLME != 0 && r.CR0&cr0PG != 0
	switch {
	case apic != s.apic:
		return bad("local APIC in the kernel: %v there, %v here", apic, s.apic)
	case s.mp.State > mpStateLast, !s.apic && s.mp.State != gokvm.MPStateRunnable:
		return bad("MP state %d", s.mp.State)
	case r.CR0&upperHalf != 0, r.CR0&cr0PG != 0 && r.CR0&cr0PE == 0, r.CR0&cr0NW != 0 && r.CR0&cr0CD == 0:
		return bad("CR0 %#x", r.CR0)
	case long && (r.CR4&cr4PAE == 0 || r.EFER&eferLMA == 0), !long && (r.EFER&eferLMA != 0 || r.CS.L != 0):
		return bad("CR0 %#x, CR4 %#x, EFER %#x and CS.L %d together", r.CR0, r.CR4, r.EFER, r.CS.L)
	case r.CR8 > 15:
		return bad("CR8 %#x", r.CR8)
	case r.Flags&^sregsFlags != 0:
		return bad("special register flags %#x", r.Flags)
	case s.xsaveSize < xsaveHeaders:
		return bad("XSAVE area of %d bytes", s.xsaveSize)
	case s.debug.DR6&upperHalf != 0, s.debug.DR7&upperHalf != 0:
		return bad("DR6 %#x, DR7 %#x", s.debug.DR6, s.debug.DR7)
	case e.Flags&^eventsFlags != 0, e.Flags&eventsPayload != 0 && e.E.Inject != 0 && e.E.Pending != 0:
		// Without the payload flag KVM reports a pending exception as injected too, and takes it
		// back as injected.
		return bad("events with flags %#x, exception injected %d and pending %d", e.Flags, e.E.Inject, e.E.Pending)
	case lacks&eventsPayload != 0 && e.E.Pending != 0, lacks&eventsTripleFault != 0 && e.TripleFault != 0:
		return bad("events with flags %#x, of which KVM_CAP_EXCEPTION_PAYLOAD or KVM_CAP_X86_TRIPLE_FAULT_EVENT is not enabled here", e.Flags)
	case s.cpuid.n == 0:
		return bad("no CPUID")
	case s.nested():
		return fmt.Errorf("%w: %w", ErrState, &NotSavedError{"nested virtualization"})
	case s.shadowStacks():
		return fmt.Errorf("%w: %w", ErrState, &NotSavedError{"shadow stacks"})
	}
	for i := range s.cpuid.entries[:s.cpuid.n] {
		if c := &s.cpuid.entries[i]; c.Padding != [3]uint32{} {
			return bad("CPUID entry %d", i)
		}
	}
	if s.spare != nil {
		if id, ok := s.otherAPICID(uint32(s.spare.id)); ok {
			return bad("APIC ID %#x of the vCPU whose ID is %d", id, s.spare.id)
		}
	}
	if s.spare != nil && s.given.told.Load() { // or else nobody has kept the guest to that ID
		if err := checkAPICID(s.cpuid.entries[:s.cpuid.n], s.spare.id); err != nil {
			return err
		}
	}
	if table := s.cpuid.entries[:s.cpuid.n]; !slices.Equal(table, s.judged) {
		possible, err := s.possible()
		if err != nil {
			return err
		}
		if list := missing(table, possible); possible != nil && len(list) > 0 {
			return &CPUError{list}
		}
		s.judged = append(s.judged[:0], table...)
	}
	if s.given.fixed() {
		if has := s.given.cpuid.Load(); has != nil && !sameCPUID(s.cpuid.entries[:s.cpuid.n], *has) {
			return bad("another CPUID than that with which the vCPU has run, and which KVM does not change any more")
		}
	}
	if s.sys.xcrs != (s.xcrs.NrXRCS > 0) {
		return bad("%d extended control registers", s.xcrs.NrXRCS)
	}
	for _, x := range s.xcrs.Registers[:s.xcrs.NrXRCS] {
		if x.XRC != 0 || x.Value&xcr0FPU == 0 || x.Value&^s.xcr0Allowed() != 0 {
			return bad("XCR%d %#x", x.XRC, x.Value)
		}
	}
	if m, ok := s.repeated(); ok {
		return bad("MSR %#x twice", m.Index)
	}
	for i := range s.msr.entries[:s.msr.n] {
		m := &s.msr.entries[i]
		known := i < len(s.msrs) && s.msrs[i] == m.Index // the usual case: the same list
		if m.Padding != 0 || m.Data != 0 && !known && !s.knowsMSR(m.Index) && !s.unseen(m.Index) || !s.backed(m.Index, m.Data) {
			return &MSRError{m.Index, m.Data}
		}
		if m.Data != 0 {
			if list := lacksFeature(s.cpuid.entries[:s.cpuid.n], MSR{m.Index, m.Data}, s.sys.supports); len(list) > 0 {
				return &CPUError{list}
			}
		}
		if s.given.changes(m.Index, m.Data) {
			return fmt.Errorf("%w: the vCPU has run with another value, which KVM does not change any more", &MSRError{m.Index, m.Data})
		}
	}
	return s.checkTSCKHz()
}

// checkAPICID fails with ErrState if a CPUID table tells the guest another APIC ID than id, which
// its vCPU has.
func checkAPICID(table []CPUIDEntry, id int) error {
	if e := findCPUID(table, 1, 0); e != nil && e.Ebx>>24 != uint32(id)&0xff {
		return fmt.Errorf("%w: APIC ID %d in CPUID 1 of the vCPU whose ID is %d", ErrState, e.Ebx>>24, id)
	}
	return nil
}

// sameCPUID reports whether a is good for a vCPU that has run with b: they differ in nothing but what
// KVM itself keeps up to date, where it has that.
func sameCPUID(a, b []CPUIDEntry) bool {
	return slices.EqualFunc(a, b, func(a, b CPUIDEntry) bool {
		const osxsave, mwait, apic, ospke = 1 << 27, 1 << 3, 1 << 9, 1 << 4
		var ebx, ecx, edx uint32
		switch {
		case a.Function == 1:
			ecx, edx = osxsave|mwait, apic
		case answers(&a, 7, 0):
			ecx = ospke
		case answers(&a, xcr0CPUIDFn, 0), answers(&a, xcr0CPUIDFn, 1): // the size of what XCR0 and XSS enable
			ebx = ^uint32(0)
		}
		a.Ebx, a.Ecx, a.Edx = a.Ebx&^ebx, a.Ecx&^ecx, a.Edx&^edx
		b.Ebx, b.Ecx, b.Edx = b.Ebx&^ebx, b.Ecx&^ecx, b.Edx&^edx
		return a == b
	})
}

// xcr0Allowed returns the bits of XCR0 that the CPUID table in the state allows.
func (s *VCPUState) xcr0Allowed() uint64 {
	if e := findCPUID(s.cpuid.entries[:s.cpuid.n], xcr0CPUIDFn, 0); e != nil {
		return uint64(e.Edx)<<32 | uint64(e.Eax)
	}
	return xcr0FPU | 2 // without the leaf: FPU and SSE
}

// known returns the MSRs that can be restored here.
func (s *VCPUState) known() []uint32 {
	if s.msrs != nil {
		return s.msrs
	}
	return s.sys.msrs
}

// backed reports whether the guest has the memory that an MSR names to KVM, which
// refuses the MSR otherwise. (KVM's msr page. Of Hyper-V's MSRs KVM writes to the memory of two, that of
// hypercalls and that of a virtual processor's assist; see its Top Level Functional Specification.)
func (s *VCPUState) backed(index uint32, value uint64) bool {
	const asyncPF, pvEOI, hypercalls, assist, enabled = 0x4b564d02, 0x4b564d04, 0x40000001, 0x40000073, 1
	if s.inMemory == nil || value&enabled == 0 {
		return true
	}
	switch index {
	case asyncPF:
		return s.inMemory(value &^ 0x3f)
	case pvEOI:
		return s.inMemory(value &^ 3)
	case hypercalls, assist:
		return s.inMemory(value &^ (PageSize - 1))
	}
	return true
}

// possible returns what a guest here can have been told by CPUID, nil if that is not
// known. Whoever set the vCPU's table knows best what it is told; where nobody has done
// so through this package, KVM may tell it of more.
func (s *VCPUState) possible() ([]CPUIDEntry, error) {
	if s.sys.cpuid == nil || s.spare == nil || s.given.told.Load() {
		return s.sys.cpuid, nil
	}
	return s.spare.given(s.sys.cpuid, s.apic, s.flags)
}
