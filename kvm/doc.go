// Package kvm pauses, saves and restores KVM guests on linux/amd64, and tells
// which memory they wrote.
//
// It is for VMMs on KVM. Package colo/protect is what protects their guests.
//
// A host VMM keeps its own VM and vCPU descriptors: [Attach] adopts the VM,
// AddSlot its memory, AddVCPU its vCPUs, and none of them is ever closed here.
// A host without a VMM of its own has [Create], which makes a small VM and owns
// it. On other systems both fail with an error that wraps
// [errors.ErrUnsupported], as does a missing KVM capability
// ([CapabilityError]).
//
// # Running and pausing
//
// [VCPU.Run] is the loop around KVM_RUN; the host calls it on a goroutine of its
// own for each vCPU and handles exits there, raw or through [VCPU.Dispatch].
// [VM.Pause] returns when no vCPU runs and none has an exit pending: KVM leaves
// the second half of a port or memory access to the next KVM_RUN, so state that
// is saved between the two would perform the access again, or never. [VM.Resume]
// lets them go on; pauses nest. Both are what colo.VM asks for, with [VM.Stopped],
// which says how long the guest stood still, and [VM.Throttle], which slows it down.
//
// The devices of the host set the inputs of the interrupt controllers with VM.SetIRQ,
// which may be called while the vCPUs run.
//
// Every other method of a vCPU needs it stopped (paused, or not in Run) and fails
// with [ErrRunning] otherwise, because KVM would block the call until the vCPU
// next leaves the guest. (KVM api, section 4.1 and "KVM_RUN".)
//
// # State
//
// [VM.Register] adds the interrupt controllers, the timer, the vCPUs and the paravirtual clock to
// a vmstate.Registry, in the order in which they must be restored. [VCPUState], [ChipState] and
// [ClockState] are the same without the rest of the package, for a host that has only descriptors
// to offer. Restoring into a VM that has run is an ordinary case: it is what a COLO secondary
// does at every checkpoint. In a VM that Create made, and whose vCPUs have not entered the guest
// since its last load, a vCPU is given only the registers that differ from those it has. The
// descriptors of an adopted VM are in other hands too, so its vCPUs are given all registers.
//
// A KVM that has no second level of address translation from the hardware (EPT, NPT) keeps copies
// of the guest's page tables, which do not follow what the host writes there. A VM that is loaded
// after it has run drops them before the first vCPU enters the guest; that costs a fault for each
// page which the guest goes on to use. The VM drops them by adding a slot and taking it away, of
// the highest number that KVM takes: a host leaves that number free.
//
// A vCPU's state is: CPUID, TSC frequency, MP state, special and general
// registers with the PDPTRs, XCRs, XSAVE area, debug registers, local APIC, MSRs (those
// that KVM lists, and of the others memory types, machine-check banks with their number and what they
// can do, FEATURE_CONTROL, the keys that launch enclaves, DEBUGCTL, TSC_AUX, AMD's list of
// errata and KVM's own, and Hyper-V's synthetic interrupts and timers where the VM's host has made it
// for them, before they first run), pending events with a pending exception's payload, and the distance of
// its TSC from the other vCPUs'.
//
// Not saved, and an error where a guest uses it: nested virtualization ([NotSavedError], on
// saving and on loading), shadow stacks (the same), KVM's Xen interface (on saving, as far as KVM
// can be asked of it), more vCPUs than an APIC ID of 8 bits can name.
//
// System-management mode has memory of its own (KVM's address space 1), and a slot of another
// address space cannot be added. In a VM that Create made a guest that sends itself an SMI ends
// Run with an error that says so: an [ExitError], or EIO of newer kernels. An adopted VM may have
// slots there; what a guest writes through them is not in the dirty log of this package, so they
// must not show memory that the guest has outside of that mode.
//
// Not saved, and no error: the records of the last branches (LASTBRANCHFROMIP and its kin) where
// KVM does not list them, because there it does not let them be written; a guest that traces its
// own branches finds other records after a move. Coalesced accesses (KVM_REGISTER_COALESCED_MMIO)
// that the host has not taken yet belong to the host's devices. The memory of enclaves (SGX) cannot be
// read by anybody: a guest loses them by a move, as by a suspend. Breakpoints that the host has set
// (KVM_SET_GUEST_DEBUG) are not part of the guest.
//
// A VMM can set for a VM what KVM does not tell: whether there is a performance monitoring unit
// (KVM_CAP_PMU_CAPABILITY), how fast the bus of the local APICs is (KVM_CAP_X86_APIC_BUS_CYCLES_NS), whether the
// timer catches up on interrupts that were missed (KVM_REINJECT_CONTROL), which quirks and exits are off
// (KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_DISABLE_EXITS). That is neither in a state nor compared: a VMM
// that sets it sets it alike on the hosts between which a guest moves. [Create] leaves all of it as KVM has it.
//
// A timer that catches up, which is what KVM has, does so for the pauses of checkpoints, so that a guest that counts its
// ticks keeps the time. After a pause of a second or more it goes on without the interrupts of that time: they
// would keep the guest busy for as long as a tenth of the pause.
//
// How far the timer (PIT) has counted is not saved either. KVM does not tell it for the channel that
// interrupts, and lets every channel count anew when it is given their state: a guest that waits
// for the timer waits for up to one more count of it, 55 ms at most, and one whose timer has run
// out, and does not repeat, is interrupted once more.
//
// The section names, all version 1, are kvm/irqchip,
// kvm/pit, kvm/vcpu (one instance for each) and kvm/clock; integers are big
// endian; the XSAVE area, the local APIC's page, the interrupt controllers, CPUID
// entries and MSR entries are byte for byte the structs of the kernel's header,
// which are little-endian. Every count, size and index is checked against this
// host when a section is decoded, and the state is then tried on a spare vCPU that
// never runs, so that what KVM refuses is known before the guest is touched, and
// restoring later fails only if the host does.
//
// # Unlike hosts
//
// A guest keeps for life the CPUID that it was created with. [CommonCPUID] is what
// several hosts can all give it. [CommonFeatures] is the same for the MSRs by which a CPU tells
// of features, such as the attacks that do not work on it. KVM takes any value of some of them; what a
// guest was promised is compared with what this host's KVM supports, as CPUID is, and so is what its VMM
// has told it of machine-check banks (KVM_X86_SETUP_MCE), which a vCPU is given with its state. Not compared is the revision
// of the microcode, which a guest goes on seeing as it was told. [VM.DescribeCPU] and
// [VM.JudgeCPU], or both at once with [VM.MatchCPU], are for two hosts to find out whether a guest
// of one can run on the other, before its memory moves; a state that does not fit is refused in
// words ([CPUError]) in any case.
//
// # Time
//
// The TSC, and KVM's clock, go on from where they were when the state was saved,
// exactly where KVM has KVM_VCPU_TSC_OFFSET. The package reads the TSC back to see whether
// KVM has set it ([VM.TSCError]). With CatchUp, which the host can choose instead, the time
// of the move passes for the guest. After pauses that add up to 10 ms the guest is told, by its
// clock, that it did not run, so that its watchdogs keep quiet.
//
// On a host whose own TSC is not stable, KVM lets the TSC of a vCPU stand still while the vCPU
// does not run, and catch up when it runs again. A state has it as it was when the vCPU ran last,
// which is another moment for each: the TSCs of several vCPUs are only nearly as far apart as they
// were, and one that has waited for an interrupt is behind. A guest that takes its time from KVM's
// clock does not see that. The log tells of such a host once.
//
// # Dirty memory
//
// Writes of vCPUs are logged by KVM, in a bitmap for each slot or in a ring for each vCPU
// (AttachConfig, Config). The bitmaps of an adopted VM may have to be cleared by a second call;
// the package finds that out. KVM does not log writes of the host to guest memory: the host
// reports them with [VM.MarkDirty]. [VM.ReadDirty] returns and forgets both. Each page that it
// returns costs the guest a fault at the next write to the page, so call it no more often than
// needed.
package kvm
