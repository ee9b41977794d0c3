package guest

import gokvm "github.com/bobuhiro11/gokvm/kvm"

// SetBootState changes a vCPU's reset state to the one that the program is entered with: 64-bit
// mode, paging on, CPL3, so that the load runs natively even where KVM emulates the
// supervisor's instructions. Both its I/O privilege level and the task state in memory allow
// the vCPU to use the device's ports: a KVM that emulates the CPU may lose the former, and an
// emulated CPU may ignore the latter. There is no interrupt table: any exception is a triple
// fault, which KVM reports as a shutdown. The caller writes both back and makes the vCPU
// runnable.
func SetBootState(vcpu int, regs *gokvm.Regs, sregs *gokvm.Sregs) {
	const (
		cr0PE, cr0MP, cr0ET, cr0NE, cr0WP, cr0PG = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
		cr4PAE, cr4OSFXSR, cr4OSXMMEXCPT         = 1 << 5, 1 << 9, 1 << 10
		eferLME, eferLMA                         = 1 << 8, 1 << 10
		flagsFixed, flagsIOPL3                   = 1 << 1, 3 << 12
	)
	// Access rights as a GDT would give them (Intel SDM volume 3, 3.4.5).
	data := gokvm.Segment{Limit: 0xffffffff, Selector: 0x23, Typ: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
	code := gokvm.Segment{Limit: 0xffffffff, Selector: 0x2b, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	sregs.CS = code
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	sregs.TR = gokvm.Segment{Base: tssBase, Limit: tssLimit, Selector: 0x30, Typ: 11, Present: 1} // busy 64-bit TSS
	sregs.LDT = gokvm.Segment{Unusable: 1}
	sregs.GDT, sregs.IDT = gokvm.Descriptor{}, gokvm.Descriptor{}
	sregs.CR0 = cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0PG
	sregs.CR3 = pml4Base
	sregs.CR4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	sregs.EFER = eferLME | eferLMA
	*regs = gokvm.Regs{
		RIP:    ProgramBase,
		RDI:    uint64(StateBase + vcpu*PageSize),
		RFLAGS: flagsFixed | flagsIOPL3,
	}
}
