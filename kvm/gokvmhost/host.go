//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"github.com/bobuhiro11/gokvm/pci"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Host is a machine of gokvm with all that a session needs to protect it: a colo.VM, its
// devices as vmstate devices, its memory, and the log of what was written there. Its methods may be called from any
// goroutine. They are those of pc.Machine, which says more about each.
type Host struct {
	machine *Machine // its memory and descriptors live as long; nil: of Create
	vm      *kvm.VM
	pc      *pc.Machine
	tap     *tapUplink // nil: none
}

// Attach takes over a machine, which must not have run. The Host is paused: Resume
// lets the guest run, once Run has been called. The disk and the network card that gokvm
// has made (AddDisk, AddTapIf) are stopped for good; their file and tap are used where
// cfg names no others. The machine's own run loop must not be used any more. Devices
// added with AddDevice are used as they are, one access at a time, and the host itself
// saves their state.
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
	if cfg.OtherPorts != nil {
		return nil, errors.New("gokvmhost: OtherPorts, of a machine that has AddDevice")
	}
	if cfg.DirtyRing != 0 && cfg.DirtyRing != kvm.AutoRing {
		return nil, fmt.Errorf("gokvmhost: a dirty ring, after the vCPUs were created: %w", errors.ErrUnsupported)
	}

	h := &Host{machine: m}
	defer func() {
		if err == nil {
			return
		}
		if h.tap != nil {
			err = errors.Join(err, h.tap.giveBack())
		}
		err = errors.Join(err, h.Close())
	}()
	if h.vm, err = kvm.Attach(p.vm, kvm.AttachConfig{OwnLog: true, CatchUp: cfg.CatchUp, Log: cfg.Log}); err != nil {
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
		if err := errors.Join(v.SetCPUID(cpuid), v.SetFeatures(cfg.Features)); err != nil {
			return nil, err
		}
	}
	devices, err := h.devices(p, machineHas, cfg)
	if err != nil {
		return nil, err
	}
	if h.pc, err = pc.Attach(h.vm, p.memory, devices); err != nil {
		return nil, err
	}
	machineHas.quiet()
	return h, nil
}

// sink hides all methods of a caller's Uplink but those of pc.Uplink, so that it is no
// pc.Source: frames for the guest come by ReceivePacket only.
type sink struct{ pc.Uplink }

// composer does what sink does, for an Uplink that is a pc.Composer.
type composer struct{ pc.Composer }

func sinkOf(u pc.Uplink) pc.Uplink {
	if c, ok := u.(pc.Composer); ok {
		return composer{c}
	}
	return sink{u}
}

// devices returns what the Host's devices are connected to: what cfg names, and
// otherwise what the machine has.
func (h *Host) devices(p parts, has *own, cfg Config) (pc.Devices, error) {
	d := pc.Devices{Console: cfg.Console, Log: cfg.Log}
	if p.handlers != nil {
		d.OtherPorts = foreign(p.handlers, p.pci.Devices)
	}
	nic, disk := has.places()
	uplink := cfg.Uplink
	if uplink == nil && has.nic != nil {
		tap, err := newTapUplink(has.nic.tap, cfg.Log)
		if err != nil {
			return d, err
		}
		h.tap, uplink = tap, tap
	}
	if uplink != nil {
		vnetHdr := 0
		if h.tap == nil {
			uplink, vnetHdr = sinkOf(uplink), cfg.VNetHdr
		}
		d.NICs = []pc.NIC{{Uplink: uplink, VNetHdr: vnetHdr, MAC: cfg.MAC, Place: nic}}
	}
	storage := cfg.Disk
	if storage == nil && has.disk != nil {
		var err error
		if storage, err = newFileDisk(has.disk.file); err != nil {
			return d, err
		}
	}
	if storage != nil {
		d.Disks = []pc.Disk{{Storage: storage, Place: disk}}
	}
	return d, nil
}

// foreign returns a function that calls gokvm's handler for a port, from the table that
// gokvm's LoadLinux fills. Many handlers do nothing, some report that there is no device.
// The handlers of replaced, devices of the PCI bus, are not called, wherever the guest has put
// the ports of the devices that the Host has in their place: of gokvm's own they end the
// process where the guest breaks a rule.
func foreign(handlers *portHandlers, replaced []pci.Device) func(port uint16, in bool, p []byte) (known bool, err error) {
	var ranges [][2]uint64 // first port, how many
	for _, d := range replaced {
		ranges = append(ranges, [2]uint64{d.IOPort(), d.Size()})
	}
	return func(port uint16, in bool, p []byte) (known bool, err error) {
		for _, r := range ranges {
			if uint64(port)-r[0] < r[1] {
				return false, nil
			}
		}
		direction := 1
		if in {
			direction = 0
		}
		h := handlers[port][direction]
		if h == nil {
			return false, nil
		}
		if err := h(uint64(port), p); !errors.Is(err, gokvm.ErrUnexpectedExitReason) {
			return true, err
		}
		return false, nil
	}
}

// Run runs the vCPUs and the devices until ctx ends, the guest switches itself off
// (ErrPowerOff) or asks for a reset (ErrReset), or something fails, and returns
// which of them. All that it started has ended then: a disk or a console that
// blocks delays its return. While the Host is paused the vCPUs wait.
//
// The caller raises GOMAXPROCS by the number of vCPUs, as for kvm.VCPU.Run.
//
// It is called once at a time, and may be called again: a guest that has reset
// itself can be rolled back to an earlier state, and run on from there.
func (h *Host) Run(ctx context.Context) error { return h.pc.Run(ctx) }

// Pause stops the vCPUs and waits until the devices have completed what they had begun.
// Pauses nest. If ctx ends first, this Pause is void and the context's error is returned.
func (h *Host) Pause(ctx context.Context) error { return h.pc.Pause(ctx) }

// Resume undoes one Pause; the guest and its devices go on if it was the last.
// Resuming a running Host is no error.
func (h *Host) Resume(ctx context.Context) error { return h.pc.Resume(ctx) }

// Stopped returns how long the guest stood still in the last pause; see the method of
// kvm.VM.
func (h *Host) Stopped() time.Duration { return h.pc.Stopped() }

// Throttle keeps the vCPUs out of the guest for a share of the time, in per cent; see
// the method of kvm.VM. The devices go on.
func (h *Host) Throttle(percent int) error { return h.pc.Throttle(percent) }

// Register adds the guest's devices to a registry, in the order in which they must
// be restored: those of package kvm, then gokvm/pci, gokvm/serial, gokvm/cmos,
// gokvm/pm and, if there are any, gokvm/virtio-blk and gokvm/virtio-net, of the versions
// that pc.Machine.Register names. The memory is not among them. They are saved and restored while the Host is
// paused, and otherwise fail with ErrRunning.
func (h *Host) Register(reg *vmstate.Registry) error { return h.pc.RegisterAs(reg, "gokvm/") }

// VM returns the VM, which has the vCPUs and says on which CPUs the guest can run (MatchCPU).
// Only the Host may pause and resume it.
func (h *Host) VM() *kvm.VM { return h.vm }

// Blocks returns the guest's memory: one block, named kvm.RAMBlock. Code that writes to
// it calls VM().MarkDirty.
func (h *Host) Blocks() []ram.Block { return h.pc.Blocks() }

// EnsureMemory is for a guest that runs before its memory is there; see the method of
// pc.Machine. Devices that were added with AddDevice do not call ensure.
func (h *Host) EnsureMemory(ensure func(block string, offset, n uint64) error) {
	h.pc.EnsureMemory(ensure)
}

// Stats returns what was counted since Attach.
func (h *Host) Stats() Stats { return h.pc.Stats() }

// ReceivePacket gives the guest's NIC a copy of an Ethernet frame. It never blocks: a
// frame that there is no room for is dropped with ErrFull. A frame that the other guest of a
// pair is to receive after a checkpoint must not be given before Resume; see the method of
// pc.Card.
func (h *Host) ReceivePacket(frame []byte) error {
	cards := h.pc.Cards()
	if len(cards) == 0 {
		return fmt.Errorf("gokvmhost: no network card: %w", errors.ErrUnsupported)
	}
	return cards[0].ReceivePacket(frame)
}

// DiskGrown tells the guest that its disk has become size bytes long; see the method of pc.Machine. It
// can be what protect.DiskConfig.Grown calls.
func (h *Host) DiskGrown(size int64) error {
	return h.pc.DiskGrown(0, size)
}

// Input types p on the guest's first serial port, and returns how many bytes there
// was room for; less than all of them come with ErrFull.
func (h *Host) Input(p []byte) (int, error) { return h.pc.Input(p) }

// Close frees what Attach made; the machine stays as it is, paused for good.
// Run must have returned, or Close fails with ErrRunning. Closing twice is no error.
func (h *Host) Close() error {
	if h.pc != nil {
		if err := h.pc.Close(); err != nil {
			return err
		}
	}
	var errs []error
	if h.tap != nil {
		errs = append(errs, h.tap.close())
	}
	if h.vm != nil {
		errs = append(errs, h.vm.Close())
	}
	return errors.Join(errs...)
}
