package kvm

import "log/slog"

// PageSize is the unit of dirty logging.
const PageSize = 4096

// maxVCPUs is the number of APIC IDs of 8 bits, without the one that means all vCPUs.
const maxVCPUs = 255

// Slot is a range of guest memory and the part of a RAM block that it shows.
type Slot struct {
	ID     uint32 // KVM's number of the slot
	Block  string // RAM block, as in ReadDirty; several slots may show parts of one
	Offset uint64 // where in the block Mem begins; a multiple of 256 KiB
	GPA    uint64 // guest-physical address, a multiple of PageSize
	Mem    []byte // the host's mapping, page-aligned, not moved or unmapped while the VM lives

	ReadOnly bool // the guest's writes are exits (KVM_MEM_READONLY)
}

// AttachConfig says how a VM is adopted. The zero value is the usual case.
type AttachConfig struct {
	// KVM is a descriptor of /dev/kvm, which the caller closes; 0 makes Attach
	// open one and close it again.
	KVM int
	// DirtyRing is the number of entries in each vCPU's dirty ring, a power of
	// two of at least 1024; 0 logs in bitmaps, and AutoRing leaves the choice
	// to what the kernel has. A ring must be chosen before the first vCPU of
	// the VM is created.
	DirtyRing int
	// OwnLog says that only this package reads and clears the dirty log of the VM. Without
	// a DirtyRing Attach then makes clearing the bitmap a call of its own
	// (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), if the kernel has that. KeepDirty needs it.
	OwnLog bool
	// CatchUp makes the clocks of the guest, when its state is restored, go on as if they
	// had run since the state was saved, by the wall clocks of the two hosts
	// (KVM_CLOCK_REALTIME, and the TSC by as much): a guest that moves keeps the time
	// of day, and sees it jump. Otherwise they go on from where they were, and the
	// guest is late by the time that the move took.
	CatchUp bool
	// Log gets one record if KVM does not set the guest's TSC as it is told when a
	// state is restored (TSCError), and one if the host's own TSC is seen not to be stable
	// (see the package's comment). Nil: nothing is logged.
	Log *slog.Logger
}

// AutoRing asks for dirty rings where the kernel has them, of 65,536 entries or
// as many as the kernel takes, and for bitmaps elsewhere. The time to read a ring grows
// with the pages that were written, that to read a bitmap also with the size of the
// memory: rings pay from some tens of GiB on.
const AutoRing = -1

// Config says what Create makes.
type Config struct {
	VCPUs     int          // number of vCPUs, at most 255; 0 means 1
	Memory    uint64       // bytes, a multiple of PageSize; what does not fit below 3 GiB begins at 4 GiB
	DirtyRing int          // as in AttachConfig
	CatchUp   bool         // as in AttachConfig
	Log       *slog.Logger // as in AttachConfig

	// CPUID returns the CPUID table of vCPU i, such as CommonCPUID does; nil is
	// SupportedCPUID.
	CPUID func(i int) ([]CPUIDEntry, error)
	// Features are values of the MSRs in which a CPU lists features, such as CommonFeatures
	// returns, for all vCPUs. An MSR that is not among them has the value that KVM gives it.
	Features []MSR
}

// RAMBlock is the name of the one RAM block of a VM that Create made.
const RAMBlock = "ram"

// Handler has one function for each kind of exit, called on the vCPU's own
// goroutine. An error ends Run with that error. A nil function is an exit that
// nobody handles: Run ends with an ExitError.
//
// The functions must not call Pause, which waits for them. What they are passed
// is valid during the call only.
type Handler struct {
	IO       func(*IO) error
	MMIO     func(*MMIO) error
	Halt     func() error         // HLT, where no interrupt controller in the kernel waits it out
	Shutdown func() error         // triple fault
	Other    func(*RunData) error // anything else
}

// IO is a port access. For an instruction with a repeat prefix, Count elements
// of Size bytes are accessed one after the other.
type IO struct {
	In    bool // the guest reads: the handler fills Data
	Port  uint16
	Size  int    // bytes of one element: 1, 2 or 4
	Count int    // elements, at least 1
	Data  []byte // Size*Count bytes, shared with KVM
}

// MMIO is an access to memory that no slot backs.
type MMIO struct {
	Write bool // otherwise the handler fills Data
	Addr  uint64
	Data  []byte // 1 to 8 bytes, shared with KVM
}
