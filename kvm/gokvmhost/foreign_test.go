//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"github.com/bobuhiro11/gokvm/pci"
	"github.com/bobuhiro11/gokvm/tap"
	"github.com/bobuhiro11/gokvm/virtio"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm/pc"
)

// tunnel is an uplink that would bring frames as well.
type tunnel struct{ pc.Uplink }

func (tunnel) Receive(context.Context, func([]byte) error) error { return nil }

// What a caller's Uplink can do beyond being one is the caller's to use.
func TestNothingIsReceivedFromACallersUplink(t *testing.T) {
	var uplink pc.Source = tunnel{}
	d, err := new(Host).devices(parts{}, &own{slots: []slotKind{slotBridge}}, Config{Uplink: uplink})
	if err != nil || len(d.NICs) != 1 {
		t.Fatal(d.NICs, err)
	}
	if _, ok := d.NICs[0].Uplink.(pc.Source); ok {
		t.Error("it would be run")
	}
}

// A frame is made where it waits, also where the Uplink comes with more.
func TestFramesAreMadeInTheMemoryOfACallersUplink(t *testing.T) {
	nic := proxy.NewPrimary(proxy.PrimaryConfig{VM: still{}, Deliver: func([]byte) error { return nil }})
	for _, uplink := range []pc.Uplink{nic, struct {
		pc.Composer
		tunnel
	}{Composer: nic}} {
		d, err := new(Host).devices(parts{}, &own{slots: []slotKind{slotBridge}}, Config{Uplink: uplink})
		if err != nil || len(d.NICs) != 1 {
			t.Fatal(d.NICs, err)
		}
		if _, ok := d.NICs[0].Uplink.(pc.Composer); !ok {
			t.Error("they are made elsewhere")
		}
	}
}

type still struct{}

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }

// A handler of gokvm's may have the port, or be there to say that nobody has it.
func TestPortsOfTheMachinesOwnDevicesAreTheirs(t *testing.T) {
	var handlers portHandlers
	broken := errors.New("broken")
	var called string
	handlers[0x300] = [2]func(uint64, []byte) error{
		func(port uint64, p []byte) error { called = fmt.Sprintf("in %#x", port); p[0] = 7; return nil },
		func(port uint64, p []byte) error { called = fmt.Sprintf("out %#x %x", port, p); return nil },
	}
	handlers[0x500][1] = func(uint64, []byte) error { return fmt.Errorf("%w: port", gokvm.ErrUnexpectedExitReason) }
	handlers[0x600][1] = func(uint64, []byte) error { return broken }
	f := foreign(&handlers, nil)
	p := []byte{9}
	if known, err := f(0x300, false, p); !known || err != nil || called != "out 0x300 09" {
		t.Error(known, err, called)
	}
	if known, err := f(0x300, true, p); !known || err != nil || called != "in 0x300" || p[0] != 7 {
		t.Error(known, err, called, p)
	}
	if known, err := f(0x500, false, p); known || err != nil {
		t.Error("a handler for ports that nobody has:", known, err)
	}
	if known, err := f(0x500, true, p); known || err != nil {
		t.Error("no handler:", known, err)
	}
	if known, err := f(0x600, false, p); !known || !errors.Is(err, broken) {
		t.Error(known, err)
	}
}

// A guest may take the ports of a card or a disk elsewhere, or switch them off. Where they were,
// gokvm's handlers are still in its table: they index its memory with what they are told, and
// wake a goroutine that has been put to rest.
func TestAGuestDoesNotReachTheDevicesThatGokvmHadMade(t *testing.T) {
	memory := make([]byte, 1<<20)
	bus := pci.New(pci.NewBridge(), virtio.NewNet(irqNIC, nil, &tap.Tap{}, memory), emptyDisk(t, memory))
	var handlers portHandlers
	for _, d := range bus.Devices {
		for port := d.IOPort(); port < d.IOPort()+d.Size(); port++ {
			handlers[port] = [2]func(uint64, []byte) error{d.Read, d.Write}
		}
	}
	has, err := adopt(bus)
	if err != nil {
		t.Fatal(err)
	}
	has.quiet()
	d, err := new(Host).devices(parts{pci: bus, handlers: &handlers}, has, Config{Uplink: tunnel{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		why  string
		port uint16
		in   bool
		p    []byte
	}{
		{"the card is notified", portNIC + 16, false, []byte{1, 0}},
		{"the disk is notified", portDisk + 16, false, []byte{0, 0}},
		{"a queue of the card beyond memory", portNIC + 8, false, []byte{0xff, 0xff, 0x0f, 0}},
		{"a queue of the disk beyond memory", portDisk + 8, false, []byte{0xff, 0xff, 0x0f, 0}},
		{"the last register of the card", portNIC + 0xff, true, []byte{0xff}},
		{"the last register of the disk", portDisk + 0xff, true, []byte{0xff}},
		{"the ports of the bridge, which are those of a PC's DMA controller", 0x0d, false, []byte{0}},
	} {
		t.Run(c.why, func(t *testing.T) {
			defer func() {
				if r := recover(); r != nil {
					t.Error("the process ends:", r)
				}
			}()
			if known, err := d.OtherPorts(c.port, c.in, c.p); known || err != nil {
				t.Error(known, err)
			}
			if c.in && c.p[0] != 0xff {
				t.Errorf("%#x was read", c.p[0])
			}
		})
	}
}

// emptyDisk returns a disk of gokvm's.
func emptyDisk(t *testing.T, memory []byte) *virtio.Blk {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := virtio.NewBlk(file, irqDisk, nil, memory)
	if err != nil {
		t.Fatal(err)
	}
	p, err := diskPartsOf(disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.file.Close() })
	return disk
}
