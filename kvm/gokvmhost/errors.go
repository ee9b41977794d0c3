package gokvmhost

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/kvm/pc"
)

// Errors that callers tell apart with errors.Is. They are those of package pc.
var (
	// ErrPowerOff: the guest switched itself off.
	ErrPowerOff = pc.ErrPowerOff
	// ErrReset: the guest asked for a reset, or had a triple fault.
	ErrReset = pc.ErrReset
	// ErrRunning: the call needs a guest that is paused.
	ErrRunning = pc.ErrRunning
	// ErrClosed: the Host is closed.
	ErrClosed = pc.ErrClosed
	// ErrFull: there is no room; nothing was taken, or as much as was said.
	ErrFull = pc.ErrFull
	// ErrFrame: an Ethernet frame must have 14 to 65,535 bytes.
	ErrFrame = pc.ErrFrame
	// ErrDiskSize: a disk does not become shorter, and is not longer than what holds it.
	ErrDiskSize = pc.ErrDiskSize
	// ErrKernel: what was to be booted is no kernel that LoadLinux knows, or does
	// not fit into the guest's memory.
	ErrKernel = pc.ErrKernel
)

// TripleFaultError ends Run when a vCPU could not deliver a fault.
type TripleFaultError = pc.TripleFaultError

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
