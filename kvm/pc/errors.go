package pc

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/kvm/internal/bzimage"
	"github.com/gocolo/lockstep/kvm/internal/device"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrPowerOff: the guest switched itself off.
	ErrPowerOff = errors.New("pc: the guest powered off")
	// ErrReset: the guest asked for a reset, or had a triple fault.
	ErrReset = errors.New("pc: the guest was reset")
	// ErrRunning: the call needs a guest that is paused.
	ErrRunning = errors.New("pc: the guest is running")
	// ErrClosed: the Machine is closed.
	ErrClosed = errors.New("pc: closed")
	// ErrFull: there is no room. A call that returns how much it took took that, any other nothing.
	ErrFull = errors.New("pc: full")
	// ErrFrame: an Ethernet frame must have 14 to 65,535 bytes, and a header in front of it
	// must fit it.
	ErrFrame = errors.New("pc: bad frame")
	// ErrDiskSize: a disk does not become shorter, and is not longer than its Storage.
	ErrDiskSize = device.ErrDiskSize
	// ErrSource: a Source has returned, without an error, before it was asked to.
	ErrSource = errors.New("pc: a network card's source has ended")
	// ErrKernel: what was to be booted is no kernel that LoadLinux knows, or does
	// not fit into the guest's memory.
	ErrKernel = bzimage.ErrKernel
)

// TripleFaultError ends Run when a vCPU could not deliver a fault: as on hardware, the
// guest is reset. It says where the vCPU was.
type TripleFaultError struct {
	VCPU          int
	RIP, CR2, CR3 uint64
	GSBase        uint64 // GS base at that time
	KernelGSBase  uint64 // and what SWAPGS would make it (MSR 0xc0000102)
}

// Error implements error.
func (e *TripleFaultError) Error() string {
	return fmt.Sprintf("pc: the guest was reset: triple fault of vCPU %d at RIP %#x, CR2 %#x, CR3 %#x, GS base %#x, kernel GS base %#x",
		e.VCPU, e.RIP, e.CR2, e.CR3, e.GSBase, e.KernelGSBase)
}

// Is reports whether target is [ErrReset].
func (e *TripleFaultError) Is(target error) bool { return target == ErrReset }
