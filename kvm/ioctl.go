//go:build linux && amd64

package kvm

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests (linux/kvm.h).
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetMSRIndexList     = 0xc004ae02
	kvmCheckExtension      = 0xae03
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmGetEmulatedCPUID    = 0xc008ae09
	kvmGetMSRFeatureList   = 0xc004ae0a
	kvmX86GetMCECap        = 0x8008ae9d // KVM_X86_GET_MCE_CAP_SUPPORTED
	kvmCreateVCPU          = 0xae41
	kvmGetDirtyLog         = 0x4010ae42
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmSetIdentityMapAddr  = 0x4008ae48
	kvmCreateIRQChip       = 0xae60
	kvmIRQLine             = 0x4008ae61
	kvmGetIRQChip          = 0xc208ae62
	kvmSetIRQChip          = 0x8208ae63
	kvmCreatePIT2          = 0x4040ae77
	kvmSetClock            = 0x4030ae7b
	kvmGetClock            = 0x8030ae7c
	kvmGetPIT2             = 0x8070ae9f
	kvmSetPIT2             = 0x4070aea0
	kvmEnableCap           = 0x4068aea3
	kvmClearDirtyLog       = 0xc018aec0
	kvmResetDirtyRings     = 0xaec7
	kvmXenGetAttr          = 0xc048aec8

	kvmRun           = 0xae80
	kvmGetRegs       = 0x8090ae81
	kvmSetRegs       = 0x4090ae82
	kvmGetSregs      = 0x8138ae83
	kvmSetSregs      = 0x4138ae84
	kvmGetMSRs       = 0xc008ae88
	kvmSetMSRs       = 0x4008ae89
	kvmGetLAPIC      = 0x8400ae8e
	kvmSetLAPIC      = 0x4400ae8f
	kvmSetCPUID2     = 0x4008ae90
	kvmGetCPUID2     = 0xc008ae91
	kvmGetMPState    = 0x8004ae98
	kvmSetMPState    = 0x4004ae99
	kvmGetVCPUEvents = 0x8040ae9f
	kvmSetVCPUEvents = 0x4040aea0
	kvmGetDebugRegs  = 0x8080aea1
	kvmSetDebugRegs  = 0x4080aea2
	kvmSetTSCKHz     = 0xaea2
	kvmGetTSCKHz     = 0xaea3
	kvmGetXSave      = 0x9000aea4
	kvmSetXSave      = 0x5000aea5
	kvmGetXCRS       = 0x8188aea6
	kvmSetXCRS       = 0x4188aea7
	kvmKVMClockCtrl  = 0xaead
	kvmTranslate     = 0xc018ae85
	kvmSetDeviceAttr = 0x4018aee1
	kvmGetDeviceAttr = 0x4018aee2
	kvmHasDeviceAttr = 0x4018aee3
	kvmX86SetupMCE   = 0x4008ae9c
	kvmGetSregs2     = 0x8140aecc
	kvmSetSregs2     = 0x4140aecd
	kvmGetXSave2     = 0x9000aecf
)

// ioctl passes a pointer. The conversion to an address happens in the argument
// list of the system call, where the compiler keeps the object alive and in
// place (unsafe.Pointer, rule 4). A signal may interrupt any request, even the
// creation of a VM; all but KVM_RUN, which does not come through here, are
// repeated.
func ioctl(fd int, name string, req uintptr, arg unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return int(r), &os.SyscallError{Syscall: "ioctl " + name, Err: errno}
		}
	}
}

// ioctlValue passes a number.
func ioctlValue(fd int, name string, req, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return int(r), &os.SyscallError{Syscall: "ioctl " + name, Err: errno}
		}
	}
}

// enterGuest is KVM_RUN.
func enterGuest(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmRun, 0)
	return errno
}

// Capabilities (KVM_CAP_* in linux/kvm.h).
const (
	capMemSlots         = 10
	capXen              = 38
	capTSCControl       = 60
	capMPState          = 14
	capMCE              = 31
	capAdjustClock      = 39
	capVCPUEvents       = 41
	capDebugRegs        = 50
	capXSave            = 55
	capXCRS             = 56
	capGetTSCKHz        = 61
	capMaxVCPUs         = 66
	capTSCDeadline      = 72
	capSyncRegs         = 74
	capKVMClockCtrl     = 76
	capSMM              = 117
	capSplitIRQChip     = 121
	capImmediateExit    = 136
	capExceptionPayload = 164
	capManualProtect    = 168
	capDirtyRing        = 192
	capSregs2           = 200
	capXSave2           = 208
	capTripleFaultEvent = 218
	capDirtyRingAcqRel  = 223
)

// capability returns what KVM_CHECK_EXTENSION says of a capability, 0 if it is
// unknown.
func capability(fd int, c uintptr) int {
	n, err := ioctlValue(fd, "KVM_CHECK_EXTENSION", kvmCheckExtension, c)
	if err != nil {
		return 0
	}
	return n
}

// enableCap is struct kvm_enable_cap.
type enableCap struct {
	cap   uint32
	flags uint32
	args  [4]uint64
	_     [64]byte
}

// raw shows n values from p on as bytes.
func raw[T any](p *T, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), uintptr(n)*unsafe.Sizeof(*p))
}
