//go:build !linux || !amd64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// errPlatform wraps errors.ErrUnsupported. It is what everything here returns.
var errPlatform = fmt.Errorf("kvm: %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)

// VM is a KVM guest. There is none on this platform.
type VM struct{ _ int }

// VCPU is one vCPU of a VM. There is none on this platform.
type VCPU struct{ _ int }

// RunData stands for the part of struct kvm_run that says why a vCPU left the
// guest.
type RunData struct{ ExitReason uint32 }

// CPUIDEntry stands for one entry of a vCPU's CPUID table.
type CPUIDEntry struct{ Function uint32 }

// Probe fails with an error that wraps errors.ErrUnsupported.
func Probe() error { return errPlatform }

// SupportedCPUID fails with an error that wraps errors.ErrUnsupported.
func SupportedCPUID(i int) ([]CPUIDEntry, error) { return nil, errPlatform }

// Attach fails with an error that wraps errors.ErrUnsupported.
func Attach(vmfd uintptr, cfg AttachConfig) (*VM, error) { return nil, errPlatform }

// Create fails with an error that wraps errors.ErrUnsupported.
func Create(cfg Config) (*VM, error) { return nil, errPlatform }

// AddSlot fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) AddSlot(s Slot) error { return errPlatform }

// AddVCPU fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) AddVCPU(fd uintptr, run []byte) (*VCPU, error) { return nil, errPlatform }

// VCPUs returns nil.
func (vm *VM) VCPUs() []*VCPU { return nil }

// Memory returns nil.
func (vm *VM) Memory() []byte { return nil }

// Pause fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) Pause(ctx context.Context) error { return errPlatform }

// Resume fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) Resume(ctx context.Context) error { return errPlatform }

// StartDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) StartDirtyLog() error { return errPlatform }

// StopDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) StopDirtyLog() error { return errPlatform }

// ReadDirty fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) ReadDirty(block string, bitmap []uint64) error { return errPlatform }

// KeepDirty returns false.
func (vm *VM) KeepDirty(block string, pages []uint64) bool { return false }

// Stopped returns 0.
func (vm *VM) Stopped() time.Duration { return 0 }

// IdleCPUs returns 0.
func (vm *VM) IdleCPUs() int { return 0 }

// Throttle fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) Throttle(percent int) error { return errPlatform }

// DescribeCPU fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) DescribeCPU() ([]byte, error) { return nil, errPlatform }

// JudgeCPU fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) JudgeCPU(theirs []byte) error { return errPlatform }

// MatchCPU fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) MatchCPU() (offer []byte, judge func(theirs []byte) error, err error) {
	return nil, nil, errPlatform
}

// TSCError returns nil.
func (vm *VM) TSCError() error { return nil }

// MSR stands for a model-specific register.
type MSR struct {
	Index uint32
	Value uint64
}

// CPU stands for the description of a host's CPU.
type CPU struct {
	Supported, Given []CPUIDEntry
	MSRs, Features   []MSR
}

// ReadCPU fails with an error that wraps errors.ErrUnsupported.
func ReadCPU() (*CPU, error) { return nil, errPlatform }

// CPU fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) CPU() (*CPU, error) { return nil, errPlatform }

// CommonCPUID fails with an error that wraps errors.ErrUnsupported.
func CommonCPUID(i int, others ...*CPU) ([]CPUIDEntry, error) { return nil, errPlatform }

// CommonFeatures fails with an error that wraps errors.ErrUnsupported.
func CommonFeatures(others ...*CPU) ([]MSR, error) { return nil, errPlatform }

// Judge fails with an error that wraps errors.ErrUnsupported.
func (c *CPU) Judge(guest *CPU) error { return errPlatform }

// MarshalBinary fails with an error that wraps errors.ErrUnsupported.
func (c *CPU) MarshalBinary() ([]byte, error) { return nil, errPlatform }

// UnmarshalBinary fails with an error that wraps errors.ErrUnsupported.
func (c *CPU) UnmarshalBinary([]byte) error { return errPlatform }

// MarkDirty does nothing.
func (vm *VM) MarkDirty(gpa, n uint64) {}

// Register fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) Register(reg *vmstate.Registry) error { return errPlatform }

// SetIRQ fails with an error that wraps errors.ErrUnsupported.
func (vm *VM) SetIRQ(irq uint32, level bool) error { return errPlatform }

// Close does nothing.
func (vm *VM) Close() error { return nil }

// Index returns 0.
func (v *VCPU) Index() int { return 0 }

// Run fails with an error that wraps errors.ErrUnsupported.
func (v *VCPU) Run(ctx context.Context, handle func(*RunData) error) error { return errPlatform }

// SetFeatures fails with an error that wraps errors.ErrUnsupported.
func (v *VCPU) SetFeatures(list []MSR) error { return errPlatform }

// Dispatch returns a function that fails.
func (v *VCPU) Dispatch(h Handler) func(*RunData) error {
	return func(*RunData) error { return errPlatform }
}
