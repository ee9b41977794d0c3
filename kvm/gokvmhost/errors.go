package gokvmhost

import (
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrPowerOff: the guest switched itself off.
	ErrPowerOff = errors.New("gokvmhost: the guest powered off")
	// ErrReset: the guest asked for a reset, or had a triple fault.
	ErrReset = errors.New("gokvmhost: the guest was reset")
	// ErrRunning: the call needs a guest that is paused.
	ErrRunning = errors.New("gokvmhost: the guest is running")
	// ErrClosed: the Host is closed.
	ErrClosed = errors.New("gokvmhost: closed")
	// ErrFull: there is no room; nothing was taken, or as much as was said.
	ErrFull = errors.New("gokvmhost: full")
	// ErrFrame: an Ethernet frame must have 14 to 65,535 bytes.
	ErrFrame = errors.New("gokvmhost: bad frame length")
	// ErrKernel: what was to be booted is no kernel that LoadLinux knows, or does
	// not fit into the guest's memory.
	ErrKernel = errors.New("gokvmhost: kernel cannot be loaded")
)

// TripleFaultError is how a vCPU ended that could not deliver a fault: as on hardware,
// the guest is reset. It says where the vCPU was.
type TripleFaultError struct {
	VCPU          int
	RIP, CR2, CR3 uint64
	GSBase        uint64 // GS base at that time
	KernelGSBase  uint64 // and what SWAPGS would make it (MSR 0xc0000102)
}

// Error implements error.
func (e *TripleFaultError) Error() string {
	return fmt.Sprintf("gokvmhost: the guest was reset: triple fault of vCPU %d at RIP %#x, CR2 %#x, CR3 %#x, GS base %#x, kernel GS base %#x",
		e.VCPU, e.RIP, e.CR2, e.CR3, e.GSBase, e.KernelGSBase)
}

// Is reports whether target is [ErrReset].
func (e *TripleFaultError) Is(target error) bool { return target == ErrReset }

// LayoutError says that gokvm's types are not those that this package knows: it
// needs something that this version of gokvm has in another form, or not at all.
// It wraps [errors.ErrUnsupported].
type LayoutError struct {
	Type  string // gokvm's type, such as "machine.Machine"
	Field string // what is missing or different
	Want  string // the type it should have
	Have  string // the type it has; empty: there is no such field
}

// Error implements error.
func (e *LayoutError) Error() string {
	if e.Have == "" {
		return fmt.Sprintf("gokvmhost: gokvm's %s has no field %s of type %s: this version of gokvm is not known", e.Type, e.Field, e.Want)
	}
	return fmt.Sprintf("gokvmhost: gokvm's %s.%s is %s, not %s: this version of gokvm is not known", e.Type, e.Field, e.Have, e.Want)
}

// Unwrap returns [errors.ErrUnsupported].
func (e *LayoutError) Unwrap() error { return errors.ErrUnsupported }
