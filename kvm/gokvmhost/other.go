//go:build !linux || !amd64

package gokvmhost

import (
	"time"

	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// errPlatform wraps errors.ErrUnsupported. It is what everything here returns.
var errPlatform = fmt.Errorf("gokvmhost: %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)

// Machine stands for gokvm's machine.Machine, which does not exist on this
// platform.
type Machine struct{ _ int }

// Host is a machine of gokvm's with what it takes to protect it. There is none
// on this platform.
type Host struct{ _ int }

// New fails with an error that wraps errors.ErrUnsupported.
func New(MachineConfig) (*Machine, error) { return nil, errPlatform }

// Create fails with an error that wraps errors.ErrUnsupported.
func Create(machine MachineConfig, cfg Config) (*Host, error) { return nil, errPlatform }

// CloseMachine fails with an error that wraps errors.ErrUnsupported.
func CloseMachine(m *Machine) error { return errPlatform }

// LoadLinux fails with an error that wraps errors.ErrUnsupported.
func LoadLinux(m *Machine, kernel, initrd io.ReaderAt, cmdline string) error { return errPlatform }

// Attach fails with an error that wraps errors.ErrUnsupported.
func Attach(m *Machine, cfg Config) (*Host, error) { return nil, errPlatform }

// Run fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Run(ctx context.Context) error { return errPlatform }

// Pause fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Pause(ctx context.Context) error { return errPlatform }

// Resume fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Resume(ctx context.Context) error { return errPlatform }

// Register fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Register(reg *vmstate.Registry) error { return errPlatform }

// Blocks returns nil.
func (h *Host) Blocks() []ram.Block { return nil }

// VM returns nil.
func (h *Host) VM() *kvm.VM { return nil }

// ReadDirty fails with an error that wraps errors.ErrUnsupported.
func (h *Host) ReadDirty(block string, bitmap []uint64) error { return errPlatform }

// StartDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (h *Host) StartDirtyLog() error { return errPlatform }

// StopDirtyLog fails with an error that wraps errors.ErrUnsupported.
func (h *Host) StopDirtyLog() error { return errPlatform }

// KeepDirty returns false.
func (h *Host) KeepDirty(block string, pages []uint64) bool { return false }

// IdleCPUs returns 0.
func (h *Host) IdleCPUs() int { return 0 }

// DiskGrown fails with an error that wraps errors.ErrUnsupported.
func (h *Host) DiskGrown(size int64) error { return errPlatform }

// ReceivePacket fails with an error that wraps errors.ErrUnsupported.
func (h *Host) ReceivePacket(frame []byte) error { return errPlatform }

// Input fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Input(p []byte) (int, error) { return 0, errPlatform }

// Stopped returns 0.
func (h *Host) Stopped() time.Duration { return 0 }

// Throttle fails with an error that wraps errors.ErrUnsupported.
func (h *Host) Throttle(percent int) error { return errPlatform }

// Stats returns the zero value.
func (h *Host) Stats() Stats { return Stats{} }

// Close does nothing.
func (h *Host) Close() error { return nil }

// EnsureMemory does nothing.
func (h *Host) EnsureMemory(ensure func(block string, offset, n uint64) error) {}
