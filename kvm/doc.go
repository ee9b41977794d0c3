// Package kvm pauses, saves and restores KVM guests on linux/amd64, and tells
// which memory they wrote.
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
// lets them go on. Both are what colo.VM asks for.
//
// VM.SetIRQ is how the host's devices reach the interrupt controllers, while the
// vCPUs run as well.
//
// Everything else that touches a vCPU needs it stopped (paused, or not in Run)
// and fails with [ErrRunning] otherwise, because KVM would block the call until
// the vCPU next leaves the guest. (KVM api, section 4.1 and "KVM_RUN".)
//
// # State
//
// [VM.Register] adds the interrupt controllers, the timer, the vCPUs and the
// paravirtual clock to a vmstate.Registry, in the order in which they must be
// restored. [VCPUState], [ChipState] and [ClockState] are the same without the
// rest of the package, for a host that has only descriptors to offer. Restoring
// into a VM that has run is an ordinary case: it is what a COLO secondary does
// at every checkpoint.
//
// A vCPU's state is: CPUID, TSC frequency, MP state, special and general
// registers, XCRs, XSAVE area, debug registers, local APIC, MSRs and pending
// events. Not saved: nested virtualization (saving fails while the guest uses
// it), system-management mode's own memory, and machine-check banks beyond the
// kernel's MSR list. The section names, all version 1, are kvm/irqchip,
// kvm/pit, kvm/vcpu (one instance for each) and kvm/clock; integers are big
// endian; the XSAVE area, the local APIC's page, the interrupt controllers, CPUID
// entries and MSR entries are byte for byte the structs of the kernel's header,
// which are little-endian. Every count, size and index is checked against this
// host when a section is decoded, so that restoring later fails only if the
// host does.
//
// # Dirty memory
//
// Writes of vCPUs are logged by KVM, in a bitmap for each slot or in a ring for
// each vCPU (AttachConfig, Config); writes of the host to guest memory are not,
// and must be told with [VM.MarkDirty]. [VM.ReadDirty] reports and forgets both.
// Each page reported must fault again before its next write is logged, so it is
// not called more often than needed.
package kvm
