package device

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/vmstate"
)

// PCIPorts is the number of ports of a PCI: the address, and the data behind it.
// (PCI Local Bus 3.0, section 3.2.2.3.2.)
const PCIPorts = 8

// Places in the configuration of a function (PCI Local Bus 3.0, section 6.1).
const (
	pciVendor        = 0x00
	pciDevice        = 0x02
	pciCommand       = 0x04
	pciClass         = 0x09 // three bytes: interface, subclass, class
	pciCacheLine     = 0x0c
	pciLatency       = 0x0d
	pciBAR0          = 0x10
	pciSubsystem     = 0x2c // vendor, device
	pciInterruptLine = 0x3c
	pciInterruptPin  = 0x3d

	pciCommandIO        = 1 << 0
	pciCommandMemory    = 1 << 1
	pciCommandMaster    = 1 << 2
	pciCommandInterrupt = 1 << 10 // no interrupts by the line
	barIO               = 1 << 0
)

// FunctionConfig describes a function: the only one of its slot, with one range of
// ports. With the zero value the slot is empty.
type FunctionConfig struct {
	Vendor, Device  uint16
	Class           uint32 // class, subclass and interface
	SubsystemVendor uint16
	Subsystem       uint16
	Ports           Ports  // nil: none
	Base            uint16 // where the ports are at first
	Size            uint16 // how many; a power of two
	InterruptLine   uint8  // where the host says that INTA goes; 0: nowhere
}

// PCI is the configuration space of a bus with a function in each of its first
// slots, through configuration mechanism 1. A function's ports are where its
// driver has put them.
type PCI struct {
	mu        sync.Mutex
	address   uint32
	saved     uint32
	functions []*function
}

// function is a PCI function of the bus, with its configuration space.
type function struct {
	config   [256]byte
	saved    [256]byte
	writable [256]byte // the bits of config that the guest may change
	ports    Ports
	size     uint16
	base     atomic.Uint32 // where the ports are; 0: nowhere
}

// NewPCI returns a bus with these functions.
func NewPCI(list ...FunctionConfig) *PCI {
	p := &PCI{}
	le := binary.LittleEndian
	for _, c := range list {
		f := &function{ports: c.Ports, size: c.Size}
		p.functions = append(p.functions, f)
		if c.Vendor == 0 {
			ones(f.config[:])
			continue
		}
		le.PutUint16(f.config[pciVendor:], c.Vendor)
		le.PutUint16(f.config[pciDevice:], c.Device)
		f.config[pciClass], f.config[pciClass+1], f.config[pciClass+2] = byte(c.Class), byte(c.Class>>8), byte(c.Class>>16)
		le.PutUint16(f.config[pciSubsystem:], c.SubsystemVendor)
		le.PutUint16(f.config[pciSubsystem+2:], c.Subsystem)
		// A driver may not switch the interrupt line off, and sees that it cannot: nothing does it here.
		le.PutUint16(f.writable[pciCommand:], pciCommandIO|pciCommandMemory|pciCommandMaster)
		f.writable[pciCacheLine], f.writable[pciLatency] = 0xff, 0xff
		if c.Ports != nil {
			f.config[pciCommand] = pciCommandIO
			le.PutUint32(f.config[pciBAR0:], uint32(c.Base)|barIO)
			le.PutUint32(f.writable[pciBAR0:], ^uint32(c.Size-1))
		}
		if c.InterruptLine != 0 {
			f.config[pciInterruptLine], f.config[pciInterruptPin] = c.InterruptLine, 1
			f.writable[pciInterruptLine] = 0xff
		}
		f.locate()
	}
	return p
}

// locate puts the function's ports where its configuration says.
func (f *function) locate() {
	base := binary.LittleEndian.Uint32(f.config[pciBAR0:]) &^ 3
	if f.ports == nil || f.config[pciCommand]&pciCommandIO == 0 || base > 0xffff {
		base = 0
	}
	f.base.Store(base)
}

// Find returns the function's ports that a port belongs to, and its offset there.
func (p *PCI) Find(port uint16) (Ports, uint16) {
	for _, f := range p.functions {
		if base := f.base.Load(); base != 0 && uint32(port)-base < uint32(f.size) {
			return f.ports, port - uint16(base)
		}
	}
	return nil, 0
}

// selected returns what the address register names, and the register's number; nil
// if nothing is there.
func (p *PCI) selected() (*function, int) {
	a := p.address
	slot := int(a >> 11 & 0x1f)
	if a>>31 == 0 || a>>16&0xff != 0 || a>>8&7 != 0 || slot >= len(p.functions) {
		return nil, 0
	}
	return p.functions[slot], int(a & 0xfc)
}

// In implements Ports.
func (p *PCI) In(off uint16, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ones(b)
	if off < 4 {
		if off == 0 && len(b) == 4 {
			put(b, p.address)
		}
		return
	}
	if f, reg := p.selected(); f != nil {
		copy(b, f.config[reg+int(off&3):])
	}
}

// Out implements Ports.
func (p *PCI) Out(off uint16, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if off < 4 {
		if off == 0 && len(b) == 4 {
			p.address = value(b)
		}
		return nil
	}
	if f, reg := p.selected(); f != nil {
		for i, v := range b {
			if at := reg + int(off&3) + i; at < len(f.config) {
				f.config[at] = f.config[at]&^f.writable[at] | v&f.writable[at]
			}
		}
		f.locate()
	}
	return nil
}

// Save implements State.
func (p *PCI) Save() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saved = p.address
	for _, f := range p.functions {
		f.saved = f.config
	}
}

// Apply implements State.
func (p *PCI) Apply() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address = p.saved
	for _, f := range p.functions {
		f.config = f.saved
		f.locate()
	}
}

// VMState implements vmstate.Device. A function that is another one here is
// refused.
func (p *PCI) VMState(f *vmstate.Fields) {
	f.Uint32("address", &p.saved)
	n := uint32(len(p.functions))
	f.Uint32Equal("slots", n)
	f.StructArray("functions", "pci function", 1, int(n), func(i int, f *vmstate.Fields) {
		d := p.functions[i]
		f.Info("config", "pci config", d.saved[:])
		if f.Loading() && d.writable[pciCommand] != 0 { // a bit that earlier versions let a driver set, and which did nothing
			d.saved[pciCommand+1] &^= pciCommandInterrupt >> 8
		}
		f.Check("the same function", p.same(d))
	})
}

// same reports whether what was loaded differs only where it may.
func (p *PCI) same(f *function) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range f.writable {
		if (f.saved[i]^f.config[i])&^w != 0 {
			return false
		}
	}
	return true
}
