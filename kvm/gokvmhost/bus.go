//go:build linux && amd64

package gokvmhost

import (
	"errors"
	"sync"
	"sync/atomic"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost/internal/device"
)

// Where things are, as gokvm has them; the power block's control registers, which
// gokvm does not have, are where no other machine has any.
const (
	portReset   = 0xcf9
	portNIC     = 0x6200
	portDisk    = 0x6300
	portControl = 0x6100
	portTimer   = 0x608

	irqSerial = 4
	irqNIC    = 9
	irqDisk   = 10
	irqPower  = 11
)

// bus finds the device of a port: one of the adapter's, then one that the host has
// added to gokvm's machine. Ports that nobody has read as all ones and ignore what
// is written, and so does memory that nobody has.
type bus struct {
	windows []window
	pci     *device.PCI

	mu       sync.Mutex    // gokvm's handlers are not made for two vCPUs
	handlers *portHandlers // filled by gokvm's LoadLinux

	unknownPorts, unknownMemory atomic.Uint64
}

// window is a range of ports.
type window struct {
	first, n uint16
	ports    device.Ports
}

// io is called for every port access of a guest.
func (b *bus) io(x *kvm.IO) error {
	for i := range x.Count {
		if err := b.access(x.Port, x.In, x.Data[i*x.Size:][:x.Size]); err != nil {
			return err
		}
	}
	return nil
}

func (b *bus) access(port uint16, in bool, p []byte) error {
	ports, off := b.find(port)
	switch {
	case ports == nil:
		return b.foreign(port, in, p)
	case in:
		ports.In(off, p)
		return nil
	}
	switch err := ports.Out(off, p); {
	case errors.Is(err, device.ErrPowerOff):
		return ErrPowerOff
	case errors.Is(err, device.ErrReset):
		return ErrReset
	default:
		return err
	}
}

func (b *bus) find(port uint16) (device.Ports, uint16) {
	for i := range b.windows {
		if w := &b.windows[i]; port-w.first < w.n {
			return w.ports, port - w.first
		}
	}
	return b.pci.Find(port)
}

// foreign has gokvm's handler for a port called, one vCPU at a time. Many of those
// do nothing, some say that there is no device.
func (b *bus) foreign(port uint16, in bool, p []byte) error {
	direction := 1
	if in {
		direction = 0
		for i := range p {
			p[i] = 0xff
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.handlers[port][direction]; h != nil {
		if err := h(uint64(port), p); !errors.Is(err, gokvm.ErrUnexpectedExitReason) {
			return err
		}
	}
	b.unknownPorts.Add(1)
	return nil
}

// mmio is called for every access to memory that is not there.
func (b *bus) mmio(x *kvm.MMIO) error {
	if !x.Write {
		for i := range x.Data {
			x.Data[i] = 0xff
		}
	}
	b.unknownMemory.Add(1)
	return nil
}

// resetPort is the reset register of PCI chipsets: bit 2 resets, the others say how.
type resetPort struct{}

// In implements device.Ports.
func (resetPort) In(_ uint16, p []byte) { clear(p) }

// Out implements device.Ports.
func (resetPort) Out(_ uint16, p []byte) error {
	if p[0]&4 != 0 {
		return device.ErrReset
	}
	return nil
}

// keyboard is a keyboard controller without a keyboard, of which a guest can ask
// for a reset. Port 0x61 is in its range: the second timer's output, always high.
type keyboard struct{}

const (
	portKeyboard    = 0x60
	keyboardCommand = 4
	keyboardReset   = 0xfe
)

// In implements device.Ports. The value is gokvm's: nothing to read, and room to
// write.
func (keyboard) In(_ uint16, p []byte) {
	for i := range p {
		p[i] = 0x20
	}
}

// Out implements device.Ports.
func (keyboard) Out(off uint16, p []byte) error {
	if off == keyboardCommand && p[0] == keyboardReset {
		return device.ErrReset
	}
	return nil
}
