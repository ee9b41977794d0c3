//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost/internal/device"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Host is a machine of gokvm's with what it takes to protect it: a colo.VM, its
// devices as vmstate devices, and its memory. Its methods may be called from any
// goroutine.
type Host struct {
	machine *Machine // its memory and descriptors live as long
	vm      *kvm.VM
	memory  []byte
	bus     bus
	log     *slog.Logger

	gate    *device.Gate
	console *device.Console
	serial  *device.Serial
	cmos    *device.CMOS
	pm      *device.PM
	disk    *device.Blk // nil: none
	nic     *device.Net // nil: none
	tap     *tapUplink  // nil: none

	turn   chan struct{} // held by Pause and Resume
	pauses int           // that no Resume has undone; of who has the turn
	paused atomic.Bool   // there are any; written by who has the turn

	mu      sync.Mutex
	fail    context.CancelCauseFunc // while Run runs
	broken  error                   // why Run cannot run any more
	running bool
	closed  atomic.Bool // written with mu held
}

// Stats counts what is rare.
type Stats struct {
	UnknownPorts  uint64 // accesses to ports that nobody has
	UnknownMemory uint64 // accesses to memory that nobody has
	DroppedFrames uint64 // frames dropped by the NIC, either way
}

// Attach takes over a machine, which must not have run. The Host is paused: Resume
// lets the guest run, once Run has been called. What gokvm has of its own for a
// disk or a network card, from AddDisk or AddTapIf, is put to rest for good, and
// its file or tap is used where cfg has nothing else. The machine's own run loop
// must not be used any more; devices added with AddDevice are used as they are, one
// access at a time, and saving their state is the host's affair.
//
// It fails with a LayoutError on a gokvm that it does not know.
func Attach(m *Machine, cfg Config) (_ *Host, err error) {
	p, err := partsOf(m)
	if err != nil {
		return nil, err
	}
	fds, err := vcpus(m)
	if err != nil {
		return nil, fmt.Errorf("gokvmhost: %w", err)
	}
	machineHas, err := adopt(p.pci)
	if err != nil {
		return nil, err
	}
	if len(fds) == 0 || len(p.memory) == 0 || uint64(len(p.memory)) > maxMemory {
		return nil, fmt.Errorf("gokvmhost: a machine of %d vCPUs and %d bytes of memory", len(fds), len(p.memory))
	}
	if cfg.DirtyRing != 0 && cfg.DirtyRing != kvm.AutoRing {
		return nil, fmt.Errorf("gokvmhost: a dirty ring, after the vCPUs were created: %w", errors.ErrUnsupported)
	}

	h := &Host{machine: m, memory: p.memory, log: cfg.Log, gate: device.NewGate(), turn: make(chan struct{}, 1)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if h.vm, err = kvm.Attach(p.vm, kvm.AttachConfig{CatchUp: cfg.CatchUp, Log: cfg.Log}); err != nil {
		return nil, err
	}
	if err := h.vm.AddSlot(kvm.Slot{Block: kvm.RAMBlock, Mem: p.memory}); err != nil {
		return nil, err
	}
	runSize, err := kvm.RunSize()
	if err != nil {
		return nil, err
	}
	for i, fd := range fds {
		run := unsafe.Slice((*byte)(unsafe.Pointer(m.RunData()[i])), runSize)
		v, err := h.vm.AddVCPU(fd, run)
		if err != nil {
			return nil, err
		}
		choose := kvm.SupportedCPUID
		if cfg.CPUID != nil {
			choose = cfg.CPUID
		}
		cpuid, err := choose(i)
		if err != nil {
			return nil, err
		}
		if err := v.SetCPUID(cpuid); err != nil {
			return nil, err
		}
	}
	if err := h.vm.Pause(context.Background()); err != nil {
		return nil, err
	}
	h.pauses = 1
	h.paused.Store(true)
	if err := h.build(p, machineHas, cfg); err != nil {
		return nil, err
	}
	machineHas.quiet()
	return h, nil
}

// build makes the devices.
func (h *Host) build(p parts, has *own, cfg Config) error {
	mem := device.NewMemory(p.memory, h.vm.MarkDirty)
	h.console = device.NewConsole(cfg.Console, h.log)
	h.serial = device.NewSerial(h.console, h.line(irqSerial))
	h.cmos = device.NewCMOS(uint64(len(p.memory)), time.Now)
	h.pm = device.NewPM(time.Now)

	uplink := cfg.Uplink
	if uplink == nil && has.nic != nil {
		tap, err := newTapUplink(has.nic.tap, h.log)
		if err != nil {
			return err
		}
		h.tap, uplink = tap, tap
	}
	if uplink != nil {
		h.nic = device.NewNet(uplink, cfg.MAC, mem, h.line(irqNIC), h.log)
	}
	disk := cfg.Disk
	if disk == nil && has.disk != nil {
		var err error
		if disk, err = newFileDisk(has.disk.file); err != nil {
			return err
		}
	}
	if disk != nil {
		h.disk = device.NewBlk(disk, mem, h.line(irqDisk), h.log)
	}

	pci := device.NewPCI(h.functions(has.plan())...)
	h.bus.pci, h.bus.handlers = pci, p.handlers
	h.bus.windows = []window{
		{0x3f8, device.SerialPorts, h.serial},
		{0xcf8, 1, pci},
		{portReset, 1, resetPort{}},
		{0xcfc, 4, offset{pci, 4}},
		{0x70, device.CMOSPorts, h.cmos},
		{portTimer, device.PMTimerPorts, device.PMTimer{PM: h.pm}},
		{portControl, device.PMControlPorts, device.PMControl{PM: h.pm}},
		{portKeyboard, 16, keyboard{}},
	}
	return nil
}

// functions describes the PCI bus, in gokvm's words but for the bridge, which there
// is one to another bus. A slot that has no device stays empty.
func (h *Host) functions(slots []slotKind) []device.FunctionConfig {
	const virtio = 0x1af4
	list := make([]device.FunctionConfig, len(slots))
	for i, s := range slots {
		switch {
		case s == slotBridge:
			list[i] = device.FunctionConfig{Vendor: 0x8086, Device: 0x0d57, Class: 0x060000}
		case s == slotNIC && h.nic != nil:
			list[i] = device.FunctionConfig{
				Vendor: virtio, Device: 0x1000, Class: 0x020000, SubsystemVendor: virtio, Subsystem: 1,
				Ports: h.nic, Base: portNIC, Size: device.VirtioPorts, InterruptLine: irqNIC,
			}
		case s == slotDisk && h.disk != nil:
			list[i] = device.FunctionConfig{
				Vendor: virtio, Device: 0x1001, Class: 0x018000, SubsystemVendor: virtio, Subsystem: 2,
				Ports: h.disk, Base: portDisk, Size: device.VirtioPorts, InterruptLine: irqDisk,
			}
		}
	}
	return list
}

// offset is a window into a device's ports.
type offset struct {
	device.Ports
	by uint16
}

// In implements device.Ports.
func (o offset) In(off uint16, p []byte) { o.Ports.In(off+o.by, p) }

// Out implements device.Ports.
func (o offset) Out(off uint16, p []byte) error { return o.Ports.Out(off+o.by, p) }

// line returns an input of the interrupt controllers. That one cannot be moved ends
// Run: the guest would wait for ever.
func (h *Host) line(irq uint32) device.Line {
	return func(level bool) {
		if err := h.vm.SetIRQ(irq, level); err != nil {
			h.abort(err)
		}
	}
}

// abort ends Run with err, now or when it begins.
func (h *Host) abort(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log.Error("the guest cannot go on", "err", err)
	if h.broken == nil {
		h.broken = err
	}
	if h.fail != nil {
		h.fail(err)
	}
}

// VM returns the VM: its dirty log (ram.DirtyLog, ram.LogSwitch) and its vCPUs.
// Pausing and resuming it is the Host's affair.
func (h *Host) VM() *kvm.VM { return h.vm }

// Blocks returns the guest's memory: one block, named kvm.RAMBlock. Who writes to
// it calls VM().MarkDirty.
func (h *Host) Blocks() []ram.Block { return []ram.Block{{Name: kvm.RAMBlock, Host: h.memory}} }

// Stats returns what was counted since Attach.
func (h *Host) Stats() Stats {
	s := Stats{UnknownPorts: h.bus.unknownPorts.Load(), UnknownMemory: h.bus.unknownMemory.Load()}
	if h.nic != nil {
		s.DroppedFrames = h.nic.Dropped()
	}
	return s
}

// ReceivePacket gives the guest's NIC a copy of an Ethernet frame. It never blocks:
// a frame waits in the NIC while the guest has no room ready, and is dropped with
// ErrFull if there is none in the NIC either. What waits is part of the NIC's
// state, also what came while the guest was paused: a frame that the twin is to
// receive after a checkpoint must not be given before Resume.
func (h *Host) ReceivePacket(frame []byte) error {
	switch {
	case h.closed.Load():
		return ErrClosed
	case h.nic == nil:
		return fmt.Errorf("gokvmhost: no network card: %w", errors.ErrUnsupported)
	}
	switch err := h.nic.Receive(h.gate, frame); {
	case errors.Is(err, device.ErrFull):
		return ErrFull
	case errors.Is(err, device.ErrFrame):
		return fmt.Errorf("%w: %d", ErrFrame, len(frame))
	default:
		return err
	}
}

// Input types p on the guest's first serial port, and returns how many bytes there
// was room for; less than all of them come with ErrFull.
func (h *Host) Input(p []byte) (int, error) {
	if h.closed.Load() {
		return 0, ErrClosed
	}
	n, err := h.serial.Input(h.gate, p)
	if err != nil {
		err = ErrFull
	}
	return n, err
}

// Close lets go of what Attach made; the machine stays as it is, paused for good.
// Run must have returned, or it fails with ErrRunning. Closing twice is no error.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.running {
		h.mu.Unlock()
		return ErrRunning
	}
	again := h.closed.Swap(true)
	h.mu.Unlock()
	if again {
		return nil
	}
	h.gate.Close(context.Background()) // nobody is in for long: Run has returned
	var errs []error
	if h.tap != nil {
		errs = append(errs, h.tap.close())
	}
	if h.vm != nil {
		errs = append(errs, h.vm.Close())
	}
	return errors.Join(errs...)
}
