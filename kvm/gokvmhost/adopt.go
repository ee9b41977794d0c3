//go:build linux && amd64

package gokvmhost

import (
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/bobuhiro11/gokvm/pci"
	"github.com/bobuhiro11/gokvm/virtio"

	"github.com/gocolo/lockstep/kvm/pc"
)

// Where gokvm has its devices.
const (
	portNIC  = 0x6200
	portDisk = 0x6300

	irqNIC  = 9
	irqDisk = 10
)

// slotKind says which device is in a slot of the PCI bus.
type slotKind int

const (
	slotBridge slotKind = iota
	slotNIC
	slotDisk
)

// own lists the devices of a machine that a Host replaces by its own: those
// that AddDisk and AddTapIf have made.
type own struct {
	slots []slotKind // in the order of the bus; the bridge is the first
	disk  *diskParts
	nic   *nicParts
}

// adopt looks at the devices of a machine and changes nothing.
func adopt(bus *pci.PCI) (*own, error) {
	if bus == nil {
		return nil, &LayoutError{Type: "machine.Machine", Field: "pci", Want: "*pci.PCI", Have: "nil"}
	}
	o := &own{}
	for i, d := range bus.Devices {
		switch d := d.(type) {
		case *virtio.Net:
			if o.nic != nil {
				return nil, fmt.Errorf("gokvmhost: two network cards, at the same ports")
			}
			p, err := nicPartsOf(d)
			if err != nil {
				return nil, err
			}
			o.nic, o.slots = &p, append(o.slots, slotNIC)
		case *virtio.Blk:
			if o.disk != nil {
				return nil, fmt.Errorf("gokvmhost: two disks, at the same ports")
			}
			p, err := diskPartsOf(d)
			if err != nil {
				return nil, err
			}
			o.disk, o.slots = &p, append(o.slots, slotDisk)
		default:
			if i != 0 {
				return nil, &LayoutError{Type: "pci.PCI", Field: fmt.Sprintf("Devices[%d]", i), Want: "*virtio.Net or *virtio.Blk", Have: fmt.Sprintf("%T", d)}
			}
			o.slots = append(o.slots, slotBridge)
		}
	}
	if len(o.slots) == 0 || o.slots[0] != slotBridge { // a Host has one whatever the machine has
		o.slots = slices.Insert(o.slots, 0, slotBridge)
	}
	return o, nil
}

// plan returns the kind of device for each slot, also for devices that the machine lacks.
// Those that it has keep their slots; of the others the network card comes first.
func (o *own) plan() []slotKind {
	plan := slices.Clone(o.slots)
	for _, kind := range []slotKind{slotNIC, slotDisk} {
		if !slices.Contains(plan, kind) {
			plan = append(plan, kind)
		}
	}
	return plan
}

// places returns where the devices of a Host are: in the slots of the plan, at the ports and
// interrupts that gokvm gives them.
func (o *own) places() (nic, disk pc.Place) {
	plan := o.plan()
	return pc.Place{Slot: uint8(slices.Index(plan, slotNIC)), Ports: portNIC, Interrupt: irqNIC},
		pc.Place{Slot: uint8(slices.Index(plan, slotDisk)), Ports: portDisk, Interrupt: irqDisk}
}

// quiet ends gokvm's device goroutines for good, by closing the channels of the
// devices; calling it again does nothing. No vCPU may run in gokvm's loop.
func (o *own) quiet() {
	if d := o.disk; d != nil {
		closeOnce(d.kick)
	}
	if n := o.nic; n != nil {
		signal.Stop(n.rxKick)
		closeOnce(n.txKick)
		closeOnce(n.rxKick)
	}
}

// closeOnce closes a channel to which nobody sends any more, unless it is closed.
func closeOnce[T any](c chan T) {
	select {
	case _, ok := <-c:
		if !ok {
			return
		}
	default:
	}
	close(c)
}

// fileDisk is a disk in the file that was given to AddDisk.
type fileDisk struct {
	*os.File
	size int64
}

func newFileDisk(f *os.File) (Disk, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("gokvmhost: %w", err)
	}
	return &fileDisk{f, info.Size()}, nil
}

// Size implements Disk.
func (d *fileDisk) Size() int64 { return d.size }
