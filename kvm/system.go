//go:build linux && amd64

package kvm

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The most MSRs and CPUID entries in a state. KVM's own limits are about 150
// and 256 (KVM_MAX_CPUID_ENTRIES).
const (
	maxMSRs  = 512
	maxCPUID = 256
)

// MSRs with a rule of their own.
const (
	msrTSC          = 0x10
	msrTSCDeadline  = 0x6e0
	msrWallClock    = 0x11       // MSR_KVM_WALL_CLOCK
	msrWallClockNew = 0x4b564d00 // MSR_KVM_WALL_CLOCK_NEW
	msrDebugCtl     = 0x1d9
	msrOSVWLength   = 0xc0010140 // how many errata the other has bits of
	msrOSVWStatus   = 0xc0010141
)

// System lists the capabilities of KVM on this host that a VM needs. It is read once, and VMs
// may share it. In it only what is found out later changes.
type System struct {
	msrs       []uint32 // to save, in the order to restore
	features   []uint32 // MSRs that list features, which KVM does not change once a vCPU has run
	supports   []MSR    // what KVM supports of those, as far as it is compared; empty: not known
	xsaveSize  int      // bytes of KVM_GET_XSAVE(2)
	xsave2     bool
	xcrs       bool
	sregs2     bool
	debugRegs  bool
	tscKHz     bool // KVM_GET_TSC_KHZ
	tscControl bool // any frequency can be set
	clock      bool
	clockReal  bool         // KVM_CLOCK_REALTIME
	clockCtrl  bool         // KVM_KVMCLOCK_CTRL
	smm        bool         // system management mode, and so SMIs
	syncRegs   bool         // registers and events in struct kvm_run
	xen        bool         // KVM can be asked what a guest has made of its Xen interface
	cpuid      []CPUIDEntry // what a guest may be told; nil: not known
	keys       keysKVM      // found out when the first state is restored
}

// msrIndices is struct kvm_msr_list.
type msrIndices struct {
	n       uint32
	indices [maxMSRs]uint32
}

// ReadSystem asks KVM what it can do for a VM: kvm is a descriptor of /dev/kvm, vm one of the VM.
// It fails with a CapabilityError where KVM cannot pause or save at all. A process that asks for
// features by ARCH_REQ_XCOMP_GUEST_PERM does so before it calls ReadSystem: they make a vCPU's
// XSAVE area larger, and KVM writes all of the area.
func ReadSystem(kvm, vm int) (*System, error) {
	for _, c := range []struct {
		cap       uintptr
		name, why string
	}{
		{capImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pausing"},
		{capMPState, "KVM_CAP_MP_STATE", "saving a vCPU"},
		{capVCPUEvents, "KVM_CAP_VCPU_EVENTS", "saving a vCPU"},
		{capXSave, "KVM_CAP_XSAVE", "saving a vCPU"},
	} {
		if capability(vm, c.cap) == 0 {
			return nil, &CapabilityError{c.name, c.why}
		}
	}
	s := &System{
		xsaveSize:  capability(vm, capXSave2),
		xcrs:       capability(vm, capXCRS) != 0,
		sregs2:     capability(vm, capSregs2) != 0,
		debugRegs:  capability(vm, capDebugRegs) != 0,
		tscKHz:     capability(vm, capGetTSCKHz) != 0,
		tscControl: capability(vm, capTSCControl) != 0,
		clock:      capability(vm, capAdjustClock) != 0,
		clockReal:  capability(vm, capAdjustClock)&clockRealtime != 0,
		clockCtrl:  capability(vm, capKVMClockCtrl) != 0,
		smm:        capability(vm, capSMM) != 0,
		syncRegs:   capability(vm, capSyncRegs)&syncAll == syncAll,
		xen:        capability(vm, capXen)&xenAsked != 0,
	}
	s.xsave2 = s.xsaveSize >= xsaveMin
	s.xsaveSize = max(s.xsaveSize, xsaveMin)

	var list msrIndices
	list.n = maxMSRs
	if _, err := ioctl(kvm, "KVM_GET_MSR_INDEX_LIST", kvmGetMSRIndexList, unsafe.Pointer(&list)); err != nil {
		return nil, fmt.Errorf("kvm: %w", err)
	}
	// Setting one of the wall-clock MSRs writes guest memory, and the value
	// says only where. The deadline is compared with the TSC when it is set,
	// so it comes after it.
	for _, index := range list.indices[:min(list.n, maxMSRs)] {
		if index != msrWallClock && index != msrWallClockNew && index != msrTSCDeadline && !slices.Contains(s.msrs, index) {
			s.msrs = append(s.msrs, index)
		}
	}
	banks := capability(vm, capMCE)
	for _, index := range unlisted(banks) {
		if !slices.Contains(s.msrs, index) {
			s.msrs = append(s.msrs, index)
		}
	}
	// Of Hyper-V's synthetic interrupts and timers only the first of each kind are
	// listed.
	if slices.Contains(s.msrs, msrSControl) {
		more := []uint32{msrSIEFP, msrSIMP}
		for i := uint32(msrSINT0); i <= msrSINT15; i++ {
			more = append(more, i)
		}
		for i := uint32(msrSTimer0); i <= msrSTimer3; i++ {
			more = append(more, i) // a timer's configuration before its count
		}
		s.msrs = slices.DeleteFunc(s.msrs, func(i uint32) bool { return slices.Contains(more, i) })
		s.msrs = append(s.msrs, more...)
	}
	s.features = featureIndices(kvm)
	s.supports = readFeatures(kvm, s.features)
	if m, ok := supportedMCE(kvm, banks); ok {
		s.supports = append(s.supports, m)
	}
	var err error
	if s.cpuid, err = possibleCPUID(kvm); err != nil {
		return nil, fmt.Errorf("kvm: %w", err)
	}
	if slices.Contains(list.indices[:min(list.n, maxMSRs)], msrTSCDeadline) {
		s.msrs = append(s.msrs, msrTSCDeadline)
	}
	return s, nil
}

// unlisted returns MSRs that KVM may have and does not list, or lists only where a guest may use
// them: the memory types of physical addresses (Intel SDM volume 3, 12.11), the machine-check
// banks, of which there are as many as banks says, and what they can do, which features are locked,
// the keys that launch enclaves, DEBUGCTL, TSC_AUX, AMD's VM_CR and the errata
// that a guest is told of, and KVM's own without those that name memory.
func unlisted(banks int) []uint32 {
	const (
		physBase, physMask16                              = 0x200, 0x20f
		fix64K, fix16K0, fix16K1, fix4K0, fix4K7, defType = 0x250, 0x258, 0x259, 0x268, 0x26f, 0x2ff
		tscAux, vmCR, firstOwn, ownMSRs                   = 0xc0000103, 0xc0010114, 0x4b564d05, 27
		mcgStatus, mcgCtl, mcCtl2, mcCtl                  = 0x17a, 0x17b, 0x280, 0x400
		featureControl                                    = 0x3a
	)
	list := []uint32{msrMCGCap, featureControl, fix64K, fix16K0, fix16K1}
	for i := uint32(msrLaunchKey0); i <= msrLaunchKey3; i++ {
		list = append(list, i)
	}
	for i := uint32(physBase); i <= physMask16; i++ {
		list = append(list, i)
	}
	for i := uint32(fix4K0); i <= fix4K7; i++ {
		list = append(list, i)
	}
	list = append(list, defType, mcgStatus, mcgCtl, msrDebugCtl, tscAux, vmCR, msrOSVWLength, msrOSVWStatus)
	for i := range uint32(ownMSRs) {
		list = append(list, firstOwn+i)
	}
	for i := range uint32(min(banks, 32)) {
		list = append(list, mcCtl2+i, mcCtl+4*i, mcCtl+4*i+1, mcCtl+4*i+2, mcCtl+4*i+3)
	}
	return list
}

// RunSize returns how many bytes a vCPU's mapping of struct kvm_run has, as
// AddVCPU wants it.
func RunSize() (int, error) {
	kvm, err := openKVM()
	if err != nil {
		return 0, err
	}
	defer unix.Close(kvm)
	return ioctlValue(kvm, "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0)
}

// Probe returns nil if VMs can be created, run and saved here, and otherwise
// why not: /dev/kvm is missing, may not be opened or does not work, or a capability
// is missing. It creates a VM and closes it.
func Probe() error {
	vm, err := Create(Config{Memory: PageSize})
	if err != nil {
		return err
	}
	return vm.Close()
}

// openKVM opens /dev/kvm and checks its version. (KVM api, section 4.1: the
// version is 12 for good.)
func openKVM() (int, error) {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/kvm", Err: err}
	}
	version, err := ioctlValue(fd, "KVM_GET_API_VERSION", kvmGetAPIVersion, 0)
	if err == nil && version != 12 {
		err = fmt.Errorf("kvm: API version %d, want 12", version)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
