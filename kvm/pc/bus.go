//go:build linux && amd64

package pc

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/device"
)

// bus finds the device of a port: one of the machine's, then one of the host's. A port that no
// device has reads as all ones and ignores what is written, and so does an address without
// memory.
type bus struct {
	windows []window
	pci     *device.PCI

	mu    sync.Mutex // one vCPU at a time calls other
	other func(port uint16, in bool, p []byte) (known bool, err error)

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

// foreign has the host answer an access to a port that no device of the machine has, one vCPU at
// a time.
func (b *bus) foreign(port uint16, in bool, p []byte) error {
	if in {
		for i := range p {
			p[i] = 0xff
		}
	}
	if b.other != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if known, err := b.other(port, in, p); known || err != nil {
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

// In implements device.Ports. There is nothing to read, and room to write.
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
