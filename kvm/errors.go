package kvm

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrRunning: the call needs vCPUs that are paused or not in Run.
	ErrRunning = errors.New("kvm: vCPU is running")
	// ErrLogOff: the dirty log of a slot is off, so what was written is not
	// known.
	ErrLogOff = errors.New("kvm: dirty log is off")
	// ErrResumed: Resume was called while Pause was waiting.
	ErrResumed = errors.New("kvm: resumed while pausing")
	// ErrClosed: the VM is closed.
	ErrClosed = errors.New("kvm: VM is closed")
	// ErrState: saved state that this VM cannot take.
	ErrState = errors.New("kvm: state does not fit")
)

// CapabilityError says that KVM lacks a capability. It wraps
// [errors.ErrUnsupported].
type CapabilityError struct {
	Name string // as in the KVM api, such as KVM_CAP_DIRTY_LOG_RING
	For  string // what needs it
}

// Error implements error.
func (e *CapabilityError) Error() string {
	return fmt.Sprintf("kvm: the kernel lacks %s, needed for %s", e.Name, e.For)
}

// Unwrap returns [errors.ErrUnsupported].
func (e *CapabilityError) Unwrap() error { return errors.ErrUnsupported }

// ExitError is an exit that ends the Run of a vCPU: an error that KVM reports, or an
// exit for which there is no handler.
type ExitError struct {
	VCPU   int
	Reason uint32   // KVM_EXIT_*
	Code   uint64   // internal error: its suberror; failed entry: the hardware's reason
	Data   []uint64 // internal error: what KVM tells of it

	// Internal error: where the guest was, and the bytes of the instruction there,
	// 1 to 15, which may reach beyond its end; nil: they cannot be read. Where a program of the
	// guest has such an instruction, at CPL3, some KVMs give it an exception of the guest's own, and tell only
	// a VMM that has enabled KVM_CAP_EXIT_ON_EMULATION_FAILURE.
	RIP         uint64
	Instruction []byte

	// Internal error: the guest was in system-management mode, which needs memory of its own;
	// this package gives a VM none.
	SMM bool
}

// Error implements error.
func (e *ExitError) Error() string {
	s := fmt.Sprintf("kvm: vCPU %d: exit %d (%s)", e.VCPU, e.Reason, exitName(e.Reason))
	switch {
	case e.Reason != exitInternalError:
	case e.Code == emulationFailed && e.Instruction != nil:
		s += fmt.Sprintf(": cannot emulate the instruction % x at RIP %#x", e.Instruction, e.RIP)
	case e.Code == emulationFailed:
		s += fmt.Sprintf(": cannot emulate the instruction at RIP %#x", e.RIP)
	default:
		s += fmt.Sprintf(" at RIP %#x", e.RIP)
	}
	if e.SMM {
		s += withoutMemory
	}
	switch e.Reason {
	case exitInternalError, exitFailEntry:
		s += fmt.Sprintf(", code %#x", e.Code)
	}
	if len(e.Data) > 0 {
		s += fmt.Sprintf(", data %#x", e.Data)
	}
	return s
}

// withoutMemory is what the text of an error adds for a guest in system-management mode.
const withoutMemory = " in system-management mode, for which this package adds no memory"

// MSRError says which MSR could not be restored.
type MSRError struct {
	Index uint32
	Value uint64
}

// Error implements error.
func (e *MSRError) Error() string {
	return fmt.Sprintf("kvm: MSR %#x does not take %#x here", e.Index, e.Value)
}

// Is reports whether target is [ErrState].
func (e *MSRError) Is(target error) bool { return target == ErrState }

// CPUError names the features that the CPU of a guest has and KVM on this host lacks.
type CPUError struct {
	Missing []string // such as "AVX512F (CPUID 7.0 EBX bit 16)"; at least one
}

// Error implements error.
func (e *CPUError) Error() string {
	return "kvm: the guest's CPU has what this host lacks: " + strings.Join(e.Missing, "; ")
}

// Is reports whether target is [ErrState].
func (e *CPUError) Is(target error) bool { return target == ErrState }

// NotSavedError says that a guest uses a feature whose state this package does not save, so
// that the state would be lost.
type NotSavedError struct{ What string }

// Error implements error.
func (e *NotSavedError) Error() string {
	return "kvm: the guest uses " + e.What + ", whose state is not saved"
}

// Exit reasons (KVM_EXIT_* in linux/kvm.h).
const (
	exitUnknown       = 0
	exitIO            = 2
	exitHalt          = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitIntr          = 10
	exitInternalError = 17
	exitDirtyRingFull = 31

	emulationFailed = 1 // KVM_INTERNAL_ERROR_EMULATION
)

func exitName(reason uint32) string {
	switch reason {
	case exitUnknown:
		return "unknown"
	case exitIO:
		return "port access"
	case exitHalt:
		return "halt"
	case exitMMIO:
		return "memory-mapped access"
	case exitShutdown:
		return "shutdown: triple fault"
	case exitFailEntry:
		return "failed entry"
	case exitInternalError:
		return "internal error"
	}
	return "not handled"
}
