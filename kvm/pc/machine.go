//go:build linux && amd64

package pc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/board"
	"github.com/gocolo/lockstep/kvm/internal/device"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Machine is a PC: a colo.VM, its devices as vmstate devices, its memory, and the log of what was
// written there. Its methods
// may be called from any goroutine.
type Machine struct {
	vm     *kvm.VM
	own    bool // vm is closed with the Machine
	memory []byte
	seen   *device.Memory // what devices see of it
	bus    bus
	log    *slog.Logger

	gate    *device.Gate
	console *device.Console
	serial  *device.Serial
	cmos    *device.CMOS
	pm      *device.PM
	disks   []*device.Blk
	cards   []*Card
	rng     *device.RNG // nil: none
	places  []Place     // of the cards, the disks, the entropy device

	turn   chan struct{} // held by Pause and Resume
	pauses int           // pauses that no Resume has undone; for the goroutine that has the turn
	paused atomic.Bool   // there are any; written by who has the turn

	mu      sync.Mutex
	fail    context.CancelCauseFunc // while Run runs
	broken  error                   // why Run cannot run any more
	running bool
	closed  atomic.Bool // written with mu held
}

// Stats counts accesses that no device answers and frames that no ring took, since the Machine
// was made: a guest that runs well has few.
type Stats struct {
	UnknownPorts  uint64 // accesses to ports that nobody has
	UnknownMemory uint64 // accesses to memory that nobody has
	DroppedFrames uint64 // frames dropped by the network cards, either way
}

// lowMost is where the hole in the memory of a PC begins, which ends at 4 GiB. Package kvm's
// machines have it there.
const lowMost = 3 << 30

// Create makes a Machine. It is paused: Resume lets the guest run, once Run has been
// called. Its VM and memory go with Close.
func Create(cfg Config) (*Machine, error) {
	vm, err := kvm.Create(kvm.Config{
		VCPUs: cfg.VCPUs, Memory: cfg.Memory, DirtyRing: cfg.DirtyRing,
		CatchUp: cfg.CatchUp, CPUID: cfg.CPUID, Features: cfg.Features, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	m, err := Attach(vm, vm.Memory(), cfg.Devices)
	if err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	m.own = true
	return m, nil
}

// Attach makes a Machine of a VM that has not run, with interrupt controllers in the
// kernel: the VM's vCPUs and memory, and devices of d. memory is the guest's from address
// 0 on; what is beyond 3 GiB of it begins at 4 GiB. It is the VM's block kvm.RAMBlock,
// and stays where it is while the Machine lives. The Machine is paused, and so is the VM,
// which from now on only the Machine pauses and resumes. The caller owns the VM, and
// closes it after the Machine.
func Attach(vm *kvm.VM, memory []byte, d Devices) (*Machine, error) {
	if len(vm.VCPUs()) == 0 || len(memory) < 1<<20 {
		return nil, fmt.Errorf("pc: a machine of %d vCPUs and %d bytes of memory", len(vm.VCPUs()), len(memory))
	}
	wanted := make([]Place, 0, len(d.NICs)+len(d.Disks))
	for _, n := range d.NICs {
		if n.Uplink == nil {
			return nil, errors.New("pc: a network card without an uplink")
		}
		switch n.VNetHdr {
		case 0, packet.VNetLen, packet.VNetMergeLen, packet.VNetHashLen, packet.VNetTunnelLen:
		default:
			return nil, fmt.Errorf("pc: virtio-net headers of %d bytes", n.VNetHdr)
		}
		wanted = append(wanted, n.Place)
	}
	for _, b := range d.Disks {
		if b.Storage == nil {
			return nil, errors.New("pc: a disk without storage")
		}
		if b.Requests < 0 || b.Requests > device.MaxRequests || len(b.ID) > 20 {
			return nil, fmt.Errorf("pc: a disk that serves %d requests at once and is called %q", b.Requests, b.ID)
		}
		wanted = append(wanted, b.Place)
	}
	if d.Random.Source != nil {
		wanted = append(wanted, d.Random.Place)
	}
	places, err := place(wanted)
	if err != nil {
		return nil, err
	}
	m := &Machine{vm: vm, memory: memory, log: d.Log, places: places, gate: device.NewGate(), turn: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if err := vm.Pause(context.Background()); err != nil {
		return nil, err
	}
	m.pauses = 1
	m.paused.Store(true)
	m.build(d)
	return m, nil
}

// low returns how much of the memory is below the hole.
func (m *Machine) low() int { return min(len(m.memory), lowMost) }

// build makes the devices.
func (m *Machine) build(d Devices) {
	mem := device.NewMemory(m.memory, m.low(), m.vm.MarkDirty)
	m.seen = mem
	m.console = device.NewConsole(d.Console, m.log)
	m.serial = device.NewSerial(m.console, m.line(board.IRQSerial))
	m.cmos = device.NewCMOS(uint64(m.low()), time.Now)
	m.pm = device.NewPM(time.Now)
	functions := []device.FunctionConfig{{Vendor: 0x8086, Device: 0x0d57, Class: 0x060000}} // the bridge
	put := func(p Place, f device.FunctionConfig, ports device.Ports) {
		for len(functions) <= int(p.Slot) {
			functions = append(functions, device.FunctionConfig{})
		}
		f.Vendor, f.SubsystemVendor = virtioVendor, virtioVendor
		f.Ports, f.Base, f.Size, f.InterruptLine = ports, p.Ports, device.VirtioPorts, p.Interrupt
		functions[p.Slot] = f
	}
	for i, n := range d.NICs {
		p := m.places[i]
		card := &Card{m: m, uplink: n.Uplink, net: device.NewNet(n.Uplink, n.VNetHdr, n.MAC, mem, m.line(uint32(p.Interrupt)), m.log)}
		m.cards = append(m.cards, card)
		put(p, device.FunctionConfig{Device: 0x1000, Class: 0x020000, Subsystem: 1}, card.net)
	}
	for i, b := range d.Disks {
		p := m.places[len(d.NICs)+i]
		disk := device.NewBlk(b.Storage, b.Requests, cmp.Or(b.ID, "lockstep"), mem, m.line(uint32(p.Interrupt)), m.log)
		m.disks = append(m.disks, disk)
		put(p, device.FunctionConfig{Device: 0x1001, Class: 0x018000, Subsystem: 2}, disk)
	}
	if source := d.Random.Source; source != nil {
		p := m.places[len(m.places)-1]
		m.rng = device.NewRNG(source, mem, m.line(uint32(p.Interrupt)), m.log)
		put(p, device.FunctionConfig{Device: 0x1005, Class: 0x00ff00, Subsystem: 4}, m.rng)
	}
	for len(functions) < fewestSlots {
		functions = append(functions, device.FunctionConfig{})
	}
	pci := device.NewPCI(functions...)
	m.bus.pci, m.bus.other = pci, d.OtherPorts
	m.bus.windows = []window{
		{board.PortSerial, device.SerialPorts, m.serial},
		{0xcf8, 1, pci},
		{board.PortReset, 1, resetPort{}},
		{0xcfc, 4, offset{pci, 4}},
		{0x70, device.CMOSPorts, m.cmos},
		{board.PortTimer, device.PMTimerPorts, device.PMTimer{PM: m.pm}},
		{board.PortControl, device.PMControlPorts, device.PMControl{PM: m.pm}},
		{portKeyboard, 16, keyboard{}},
	}
}

const (
	virtioVendor = 0x1af4
	// fewestSlots gives a machine without a disk, or without a card, the same bus in the stream
	// as one with both.
	fewestSlots = 3
)

// offset is the ports of a device from the number by on.
type offset struct {
	device.Ports
	by uint16
}

// In implements device.Ports.
func (o offset) In(off uint16, p []byte) { o.Ports.In(off+o.by, p) }

// Out implements device.Ports.
func (o offset) Out(off uint16, p []byte) error { return o.Ports.Out(off+o.by, p) }

// line returns an input of the interrupt controllers. Run ends if its level cannot be
// set: the guest would wait for ever.
func (m *Machine) line(irq uint32) device.Line {
	return func(level bool) {
		if err := m.vm.SetIRQ(irq, level); err != nil {
			m.abort(err)
		}
	}
}

// abort ends Run with err, now or when it begins.
func (m *Machine) abort(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log.Error("the guest cannot go on", "err", err)
	if m.broken == nil {
		m.broken = err
	}
	if m.fail != nil {
		m.fail(err)
	}
}

// VM returns the VM, which has the vCPUs and says on which CPUs the guest can run (MatchCPU).
// Only the Machine may pause and resume it.
func (m *Machine) VM() *kvm.VM { return m.vm }

// Blocks returns the guest's memory: one block, named kvm.RAMBlock. Code that writes to
// it calls VM().MarkDirty.
func (m *Machine) Blocks() []ram.Block { return []ram.Block{{Name: kvm.RAMBlock, Host: m.memory}} }

// EnsureMemory is for a guest that runs before its memory is there. Devices call ensure
// before they touch memory: it returns when n bytes of the block of Blocks from offset on
// are there (the method Ensure of a ram.Lazy). An error of ensure means that the memory
// will never come; it is ignored, since the guest is lost then. Nil: all memory is there.
// The Machine must be paused.
func (m *Machine) EnsureMemory(ensure func(block string, offset, n uint64) error) {
	if ensure == nil {
		m.seen.Ensure(nil)
		return
	}
	m.seen.Ensure(func(off, n uint64) { _ = ensure(kvm.RAMBlock, off, n) })
}

// Cards returns the guest's network cards, in the order of Devices.NICs.
func (m *Machine) Cards() []*Card { return m.cards[:len(m.cards):len(m.cards)] }

// Places returns where the guest's devices are on the PCI bus: the network cards, the
// disks, each in the order of Devices, and the entropy device.
func (m *Machine) Places() []Place { return append([]Place(nil), m.places...) }

// Stats returns what was counted since the Machine was made.
func (m *Machine) Stats() Stats {
	s := Stats{UnknownPorts: m.bus.unknownPorts.Load(), UnknownMemory: m.bus.unknownMemory.Load()}
	for _, c := range m.cards {
		s.DroppedFrames += c.net.Dropped()
	}
	return s
}

// Input types p on the guest's first serial port, and returns how many bytes there
// was room for; less than all of them come with ErrFull.
func (m *Machine) Input(p []byte) (int, error) {
	if m.closed.Load() {
		return 0, ErrClosed
	}
	n, err := m.serial.Input(m.gate, p)
	if err != nil {
		err = ErrFull
	}
	return n, err
}

// Close frees what Create or Attach made; a VM that was attached stays as it is, paused.
// Run must have returned, or Close fails with ErrRunning. From then on Pause and Resume fail
// with ErrClosed. Closing twice is no error.
func (m *Machine) Close() error {
	m.mu.Lock()
	if m.running {
		m.mu.Unlock()
		return ErrRunning
	}
	again := m.closed.Swap(true)
	m.mu.Unlock()
	if again {
		return nil
	}
	m.turn <- struct{}{} // a Pause or Resume that has begun is over, and none begins
	defer m.give()
	m.gate.Close(context.Background()) // it waits for nobody long: Run has returned
	if m.own {
		return m.vm.Close()
	}
	return nil
}
