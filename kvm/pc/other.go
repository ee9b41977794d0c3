//go:build !linux || !amd64

package pc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// errPlatform wraps errors.ErrUnsupported. It is what everything here returns.
var errPlatform = fmt.Errorf("pc: %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)

// Machine is a PC. There is none on this platform.
type Machine struct{ _ int }

// Card is a network card of a Machine. There is none on this platform.
type Card struct{ _ int }

// Stats counts accesses that no device answers and frames that no ring took.
type Stats struct{ UnknownPorts, UnknownMemory, DroppedFrames uint64 }

// Create fails with an error that wraps errors.ErrUnsupported.
func Create(cfg Config) (*Machine, error) { return nil, errPlatform }

// Attach fails with an error that wraps errors.ErrUnsupported.
func Attach(vm *kvm.VM, memory []byte, d Devices) (*Machine, error) { return nil, errPlatform }

// LoadLinux fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) LoadLinux(kernel, initrd io.ReaderAt, cmdline string) error { return errPlatform }

// Run fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Run(ctx context.Context) error { return errPlatform }

// Pause fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Pause(ctx context.Context) error { return errPlatform }

// Resume fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Resume(ctx context.Context) error { return errPlatform }

// Register fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Register(reg *vmstate.Registry) error { return errPlatform }

// RegisterAs fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) RegisterAs(reg *vmstate.Registry, prefix string) error { return errPlatform }

// Blocks returns nil.
func (m *Machine) Blocks() []ram.Block { return nil }

// EnsureMemory does nothing.
func (m *Machine) EnsureMemory(ensure func(block string, offset, n uint64) error) {}

// VM returns nil.
func (m *Machine) VM() *kvm.VM { return nil }

// ReadDirty fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) ReadDirty(block string, bitmap []uint64) error { return errPlatform }

// StartDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) StartDirtyLog() error { return errPlatform }

// StopDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) StopDirtyLog() error { return errPlatform }

// KeepDirty returns false.
func (m *Machine) KeepDirty(block string, pages []uint64) bool { return false }

// IdleCPUs returns 0.
func (m *Machine) IdleCPUs() int { return 0 }

// Cards returns nil.
func (m *Machine) Cards() []*Card { return nil }

// Places returns nil.
func (m *Machine) Places() []Place { return nil }

// DiskGrown fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) DiskGrown(disk int, size int64) error { return errPlatform }

// Input fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Input(p []byte) (int, error) { return 0, errPlatform }

// Stopped returns 0.
func (m *Machine) Stopped() time.Duration { return 0 }

// Throttle fails with an error that wraps errors.ErrUnsupported.
func (m *Machine) Throttle(percent int) error { return errPlatform }

// Stats returns the zero value.
func (m *Machine) Stats() Stats { return Stats{} }

// Close does nothing.
func (m *Machine) Close() error { return nil }

// ReceivePacket fails with an error that wraps errors.ErrUnsupported.
func (c *Card) ReceivePacket(frame []byte) error { return errPlatform }

// Dropped returns 0.
func (c *Card) Dropped() uint64 { return 0 }
