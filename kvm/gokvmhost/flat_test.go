//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bobuhiro11/gokvm/iodev"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
)

// flat is the flat test program in a machine of gokvm's. Its device is one of the
// host's own, added to gokvm's machine.
type flat struct {
	*gokvmhost.Host
	t       *testing.T
	machine *gokvmhost.Machine
	params  guest.Params
	device  *flatDevice
	reg     vmstate.Registry
	mem     []byte

	stop context.CancelFunc
	done chan error
}

// flatDevice is an iodev.Device: the port on which the program emits its frames.
type flatDevice struct {
	mem    func(addr uint64) ([]byte, error)
	mu     sync.Mutex
	frames [][]guest.Frame // by vCPU
}

var _ iodev.Device = (*flatDevice)(nil)

func (d *flatDevice) IOPort() uint64 { return guest.PortStatus }
func (d *flatDevice) Size() uint64   { return 8 }

func (d *flatDevice) Read(port uint64, p []byte) error {
	p[0] = guest.StatusReady
	return nil
}

func (d *flatDevice) Write(port uint64, p []byte) error {
	if port != guest.PortEmit || len(p) != 4 {
		return fmt.Errorf("port %#x written with %d bytes", port, len(p))
	}
	b, err := d.mem(uint64(binary.LittleEndian.Uint32(p)))
	if err != nil {
		return err
	}
	f, err := guest.ParseFrame(b)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frames[f.VCPU] = append(d.frames[f.VCPU], f)
	return nil
}

func newMachine(t *testing.T, cfg gokvmhost.MachineConfig) *gokvmhost.Machine {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	m, err := gokvmhost.New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, gokvmhost.CloseMachine(m)) })
	return m
}

// newFlat returns a machine with the program at its entry, paused and not running.
func newFlat(t *testing.T, p guest.Params, cfg gokvmhost.Config) *flat {
	t.Helper()
	m := newMachine(t, gokvmhost.MachineConfig{VCPUs: p.VCPUs, Memory: max(32<<20, p.MemSize())})
	f := &flat{t: t, machine: m, params: p}
	f.device = &flatDevice{frames: make([][]guest.Frame, max(p.VCPUs, 1))}
	m.AddDevice(f.device)
	must(t, gokvmhost.LoadLinux(m, bytes.NewReader(guest.LeastKernel()), nil, ""))
	var err error
	f.Host, err = gokvmhost.Attach(m, cfg)
	must(t, err)
	t.Cleanup(func() {
		f.halt()
		must(t, f.Close())
	})
	mem := f.Blocks()[0].Host
	f.mem = mem
	must(t, f.Register(&f.reg))
	f.device.mem = func(addr uint64) ([]byte, error) { return guest.Emitted(mem, addr) }
	clear(mem)
	must(t, guest.Load(mem, p))
	f.VM().MarkDirty(0, uint64(len(mem)))
	for i, v := range f.VM().VCPUs() {
		regs, err := v.Regs()
		must(t, err)
		sregs, err := v.Sregs()
		must(t, err)
		guest.SetBootState(i, &regs, &sregs)
		must(t, errors.Join(v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable()))
	}
	return f
}

// createFlat returns a Host for the program, which is to come.
func createFlat(t *testing.T, p guest.Params, cfg gokvmhost.Config) *flat {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	f := &flat{t: t, params: p, device: &flatDevice{frames: make([][]guest.Frame, max(p.VCPUs, 1))}}
	cfg.OtherPorts = func(port uint16, in bool, b []byte) (known bool, err error) {
		switch {
		case uint64(port) < f.device.IOPort() || uint64(port) >= f.device.IOPort()+f.device.Size():
			return false, nil
		case in:
			return true, f.device.Read(uint64(port), b)
		}
		return true, f.device.Write(uint64(port), b)
	}
	var err error
	f.Host, err = gokvmhost.Create(gokvmhost.MachineConfig{VCPUs: p.VCPUs, Memory: max(32<<20, p.MemSize())}, cfg)
	must(t, err)
	t.Cleanup(func() {
		f.halt()
		must(t, f.Close())
	})
	f.mem = f.Blocks()[0].Host
	must(t, f.Register(&f.reg))
	f.device.mem = func(addr uint64) ([]byte, error) { return guest.Emitted(f.mem, addr) }
	return f
}

// start calls Run on a goroutine of its own until halt.
func (f *flat) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop, f.done = cancel, make(chan error, 1)
	go func() { f.done <- f.Run(ctx) }()
}

func (f *flat) halt() {
	if f.stop == nil {
		return
	}
	f.stop()
	if err := <-f.done; !errors.Is(err, context.Canceled) {
		f.t.Error("Run:", err)
	}
	f.stop = nil
}

// rounds returns the round of a vCPU's last frame.
func (f *flat) rounds(v int) uint64 {
	f.device.mu.Lock()
	defer f.device.mu.Unlock()
	if n := len(f.device.frames[v]); n > 0 {
		return f.device.frames[v][n-1].N
	}
	return 0
}

// await waits until every vCPU has emitted the frame of round n.
func (f *flat) await(n uint64) {
	f.t.Helper()
	for v := range f.device.frames {
		for f.rounds(v) < n {
			select {
			case err := <-f.done:
				f.done <- err
				f.t.Fatal("Run:", err)
			case <-time.After(100 * time.Microsecond):
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
