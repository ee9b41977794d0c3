//go:build linux && amd64

package pc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/board"
	"github.com/gocolo/lockstep/kvm/internal/device"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// outside is what the devices of a world are connected to: a disk, an uplink, a console and randomness, all
// of which fail when they are told to.
type outside struct {
	mu    sync.Mutex
	fails bool
	disk  [64 << 10]byte // and behind it the same again, as far as it has grown
	grown int64
	sent  int
	room  chan struct{}
}

var errOutside = errors.New("no")

func (o *outside) do(fn func()) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fails {
		return errOutside
	}
	fn()
	return nil
}

func (o *outside) ReadAt(p []byte, off int64) (n int, err error) {
	return len(p), o.do(func() {
		for n := 0; n < len(p); {
			n += copy(p[n:], o.disk[(off+int64(n))%int64(len(o.disk)):])
		}
	})
}

func (o *outside) WriteAt(p []byte, off int64) (n int, err error) {
	return len(p), o.do(func() {
		for n := 0; n < len(p); {
			n += copy(o.disk[(off+int64(n))%int64(len(o.disk)):], p[n:])
		}
	})
}

func (o *outside) Size() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(len(o.disk)) + o.grown
}

func (o *outside) grow(n int64) {
	o.mu.Lock()
	o.grown += n
	o.mu.Unlock()
}

func (o *outside) Sync() error                 { return o.do(func() {}) }
func (o *outside) WritePacket([]byte) error    { return o.do(func() { o.sent++ }) }
func (o *outside) Room() <-chan struct{}       { return o.room }
func (o *outside) Write(p []byte) (int, error) { return len(p), nil }

func (o *outside) Read(p []byte) (n int, err error) {
	return len(p), o.do(func() {
		for i := range p {
			p[i] = 7
		}
	})
}

// fail makes what is outside fail, or work again.
func (o *outside) fail(fails bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fails = fails; !fails {
		select {
		case o.room <- struct{}{}:
		default:
		}
	}
}

// world is a machine whose guest waits for ever, with a driver that does what a program says to all of its
// devices, while their own goroutines work.
type world struct {
	*idle
	out     *outside
	all     vmstate.Registry
	first   []byte // the state in which it was made
	memory  []byte // and its memory
	program []byte
	avail   [5][2]uint16
	written bool // power off or reset, since it was last looked at
}

func newWorld(t testing.TB) *world {
	o := &outside{room: make(chan struct{}, 1)}
	w := &world{out: o, idle: newIdle(t, Devices{
		Console: o,
		NICs:    []NIC{{Uplink: o, MAC: [6]byte{2, 0, 0, 0, 0, 1}}, {Uplink: o, VNetHdr: 12, MAC: [6]byte{2, 0, 0, 0, 0, 2}}},
		Disks:   []Disk{{Storage: o}, {Storage: o, Requests: 4, ID: "two"}},
		Random:  Random{Source: o},
	})}
	w.must(errors.Join(w.Register(&w.all), w.vm.StartDirtyLog()))
	w.first, w.memory = w.save(&w.all), bytes.Clone(w.Machine.memory)
	w.start()
	return w
}

func (w *world) pause()  { w.t.Helper(); w.must(w.Pause(context.Background())) }
func (w *world) resume() { w.t.Helper(); w.must(w.Resume(context.Background())) }

func (w *world) save(reg *vmstate.Registry) []byte {
	w.t.Helper()
	var b bytes.Buffer
	out := qemufile.NewWriter(&b)
	w.must(reg.SaveDevices(out))
	vmstate.PutEOF(out)
	w.must(out.Flush())
	return b.Bytes()
}

func (w *world) load(state []byte) error {
	w.all.NewSession()
	if err := w.all.LoadDevices(state, nil); err != nil {
		return err
	}
	w.must(w.all.Commit())
	return nil
}

// devices returns the state of the devices that have no clock.
func (w *world) devices() []byte {
	w.t.Helper()
	var reg vmstate.Registry
	add := func(name string, instance, version uint32, s device.State) {
		w.must(reg.Register(vmstate.Entry{Name: name, Instance: instance, Version: version, MinVersion: 1}, section{w.Machine, name, instance, s}))
	}
	add("pci", 0, 1, w.bus.pci)
	add("serial", 0, 1, w.serial)
	add("cmos", 0, 1, w.cmos)
	for i := range 2 {
		add("blk", uint32(i), 1, w.disks[i])
		add("net", uint32(i), device.NetVersion, w.cards[i].net)
	}
	add("rng", 0, 1, w.rng)
	return w.save(&reg)
}

// back loads the state and the memory in which the world was made. It is paused.
func (w *world) back() {
	w.t.Helper()
	copy(w.Machine.memory, w.memory)
	w.vm.MarkDirty(0, uint64(len(w.memory)))
	w.must(w.load(w.first))
	w.avail = [5][2]uint16{}
	w.written = false
}

func (w *world) next() (v byte) {
	if len(w.program) > 0 {
		v, w.program = w.program[0], w.program[1:]
	}
	return v
}

func (w *world) uint16() uint16 { return uint16(w.next()) | uint16(w.next())<<8 }
func (w *world) uint32() uint32 { return uint32(w.uint16()) | uint32(w.uint16())<<16 }

// ring is where the driver has queue q of a device at first.
func ring(dev, q int) uint64 { return 0x20000 + uint64(2*dev+q)*0x4000 }

// poke writes guest memory, as a vCPU does, while no device is at work.
func (w *world) poke(gpa uint64, p []byte) {
	if gpa < 0x2000 || gpa+uint64(len(p)) > uint64(len(w.memory)) || gpa+uint64(len(p)) < gpa {
		return
	}
	w.must(w.gate.Close(context.Background()))
	copy(w.Machine.memory[gpa:], p)
	w.vm.MarkDirty(gpa, uint64(len(p)))
	w.gate.Open()
}

func (w *world) put16(gpa uint64, v uint16) { w.poke(gpa, binary.LittleEndian.AppendUint16(nil, v)) }

// access makes a guest access a port.
func (w *world) access(in bool, port uint16, p []byte) {
	w.t.Helper()
	err := w.bus.io(&kvm.IO{In: in, Port: port, Size: len(p), Count: 1, Data: p})
	if errors.Is(err, ErrReset) || errors.Is(err, ErrPowerOff) {
		w.written = true
		return
	}
	w.must(err)
}

func (w *world) outs(port uint16, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	w.access(false, port, p[:n])
}

// port is one that something may be behind.
func (w *world) port() uint16 {
	bases := [...]uint16{
		w.places[0].Ports, w.places[1].Ports, w.places[2].Ports, w.places[3].Ports, w.places[4].Ports,
		w.places[0].Ports, w.places[2].Ports, w.places[4].Ports,
		board.PortSerial, board.PortSerial, 0xcf8, 0xcfc, 0x70, board.PortTimer, board.PortControl, 0x7000,
	}
	i := w.next()
	base := bases[i%16]
	if i%16 < 8 || i%16 == 15 {
		return base + uint16(w.next()%64)
	}
	return base + uint16(w.next()%8)
}

// offer makes a chain available.
func (w *world) offer(dev, q int, head uint16) {
	at := ring(dev, q) + available
	w.put16(at+4+2*uint64(w.avail[dev][q]%device.QueueSize), head)
	w.avail[dev][q]++
	w.put16(at+2, w.avail[dev][q])
}

// desc writes a descriptor of a queue.
func (w *world) desc(dev, q int, i uint16, addr uint64, n uint32, flags, next uint16) {
	d := binary.LittleEndian.AppendUint64(nil, addr)
	d = binary.LittleEndian.AppendUint32(d, n)
	d = binary.LittleEndian.AppendUint16(d, flags)
	w.poke(ring(dev, q)+16*uint64(i), binary.LittleEndian.AppendUint16(d, next))
}

// step performs one operation of the program on w, and returns the world in which the guest goes on: w, or
// there, which is paused before.
func (w *world) step(there *world) *world {
	w.t.Helper()
	op, which := w.next(), w.next()
	dev, q := int(which%5), int(which>>7)
	switch op % 16 {
	case 0, 1:
		w.outs(w.port(), 1<<(w.next()%3), w.uint32())
	case 2:
		var p [4]byte
		w.access(true, w.port(), p[:1<<(w.next()%3)])
	case 3: // the configuration of a function
		w.outs(0xcf8, 4, 1<<31|uint32(dev+1)<<11|uint32([...]byte{4, 0x10, 0x3c, w.next() & 0xfc}[which>>5%4]))
		values := [...]uint32{0, 1, 7, 0x405, 0x3f1, 0x7001, 0xff01, 0x6101, uint32(w.places[dev].Ports) | 1, w.uint32()}
		w.outs(0xcfc, 4, values[int(w.next())%len(values)])
	case 4: // a queue where the driver keeps it
		w.outs(w.places[dev].Ports+selected, 2, uint32(q))
		w.outs(w.places[dev].Ports+pfn, 4, uint32(ring(dev, q)/kvm.PageSize))
		w.avail[dev][q] = 0
	case 5, 6:
		addrs := [...]uint64{data, data + 0x1000, ring(dev, q), ring(dev, q) + used, 0, uint64(len(w.memory)) - 100, uint64(len(w.memory)), 1<<64 - 8}
		lens := [...]uint32{16, 512, 1, 20, 0, 1526, 0x8000, 1<<32 - 1}
		w.desc(dev, q, uint16(w.next()%32), addrs[w.next()%8], lens[w.next()%8], uint16(w.next()&7), uint16(w.next()%32))
	case 7:
		w.offer(dev, q, uint16(w.next()%33))
	case 8:
		w.poke(data, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(w.next()%10)), uint64(w.next())))
	case 9, 10:
		w.outs(w.places[dev].Ports+notify, 2, uint32(q))
	case 11:
		f := make([]byte, 12+14+int(w.uint16()%3000))
		if err := w.cards[dev%2].ReceivePacket(f); err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrFrame) {
			w.t.Fatal(err)
		}
	case 12:
		if _, err := w.Input(make([]byte, which%20)); err != nil && !errors.Is(err, ErrFull) {
			w.t.Fatal(err)
		}
	case 13:
		if which%4 == 1 { // the disks grow on both hosts; one may not be told yet, and the guest may move meanwhile
			n := int64(w.uint16())
			w.out.grow(n)
			there.out.grow(n)
			for i, d := range []*world{w, there, w, there} {
				if which>>4&(1<<i) != 0 {
					w.must(d.DiskGrown(i/2, d.out.Size()))
				}
			}
			break
		}
		w.out.fail(which%2 == 0)
	case 14:
		w.pause()
		if which%4 == 0 {
			w.spoilt()
			w.resume()
			return w
		}
		w.goes(there)
		there.resume()
		return there
	case 15:
		if which%4 == 0 || w.written { // as a host goes back when a guest asks for a reset
			w.pause()
			w.back()
			w.resume()
		}
	}
	return w
}

// goes takes the guest to another world: its state, and of its memory what the dirty log names. Both
// worlds are paused then. Of what was outside there is nothing to take.
func (w *world) goes(there *world) {
	w.t.Helper()
	bitmap := ram.NewBitmap(len(w.memory) / kvm.PageSize)
	w.must(w.vm.ReadDirty(kvm.RAMBlock, bitmap))
	for i := range bitmap.All() {
		at := i * kvm.PageSize
		copy(there.Machine.memory[at:at+kvm.PageSize], w.Machine.memory[at:])
	}
	if i := differ(there.Machine.memory, w.Machine.memory); i >= 0 {
		w.t.Fatalf("a device wrote at %#x, and the log does not name that", i)
	}
	state, devices := w.save(&w.all), w.devices()
	there.must(there.load(state))
	if got := there.devices(); !bytes.Equal(got, devices) {
		w.t.Fatalf("another state has arrived:\n% x\n% x", got, devices)
	}
	clear(bitmap)
	there.must(there.vm.ReadDirty(kvm.RAMBlock, bitmap)) // what was loaded is no news
	there.program, there.avail, there.written = w.program, w.avail, w.written
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// spoilt loads a state that is wrong somewhere: it is refused, and then nothing of it is there, or the guest
// goes on with it. The world is paused.
func (w *world) spoilt() {
	w.t.Helper()
	before := w.devices()
	state := w.save(&w.all)
	from := bytes.Index(state, []byte("pc/pci"))
	for range 1 + w.next()%3 {
		at := from + int(w.uint16())%(len(state)-from)
		if w.next()%2 == 0 {
			state[at] ^= 1 << (w.next() % 8)
		} else {
			state[at] = w.next()
		}
	}
	if err := w.load(state); err != nil {
		if after := w.devices(); !bytes.Equal(after, before) {
			w.t.Fatalf("%v, and it has left something:\n% x\n% x", err, after, before)
		}
	}
}

// recovers fails unless a driver with manners can use every device after the guest has been taken back.
func (w *world) recovers() {
	w.t.Helper()
	w.out.fail(false)
	w.pause()
	w.back()
	w.out.mu.Lock()
	sent := w.out.sent
	w.out.mu.Unlock()
	w.resume()
	for dev, p := range w.places {
		q := 0
		if dev < 2 { // of a card its frames to the world, and one that comes
			w.outs(p.Ports+selected, 2, 0)
			w.outs(p.Ports+pfn, 4, uint32(ring(dev, 0)/kvm.PageSize))
			w.desc(dev, 0, 0, data+0x4000, 2000, 2, 0)
			w.offer(dev, 0, 0)
			q = 1
		}
		w.outs(p.Ports+selected, 2, uint32(q))
		w.outs(p.Ports+pfn, 4, uint32(ring(dev, q)/kvm.PageSize))
		w.desc(dev, q, 0, data, 64, 1, 1)
		w.desc(dev, q, 1, data+0x1000, 21, 2, 0)
		if dev < 2 {
			w.desc(dev, q, 0, data, 64, 0, 0)
		}
		w.poke(data, []byte{8}) // a disk says who it is
		w.offer(dev, q, 0)
		w.outs(p.Ports+notify, 2, uint32(q))
		if dev < 2 {
			w.must(w.cards[dev].ReceivePacket(make([]byte, 60)))
			w.served(dev, 0)
		}
		w.served(dev, q)
	}
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	if w.out.sent != sent+2 {
		w.t.Errorf("%d frames were sent, want one of each card", w.out.sent-sent)
	}
	w.pause()
}

// served waits until a queue has returned its chain.
func (w *world) served(dev, q int) {
	w.t.Helper()
	w.eventually("a request is served after the guest has been taken back", func() bool {
		w.must(w.gate.Close(context.Background()))
		defer w.gate.Open()
		return binary.LittleEndian.Uint16(w.Machine.memory[ring(dev, q)+used+2:]) == 1
	})
}

var programs = flag.Int("programs", 8, "how many programs a driver has for a machine")

// Whatever a driver does to all devices of a machine at once, and wherever the guest is taken meanwhile: its
// memory and the state of its devices arrive as they were, a state that is wrong is refused
// whole, and the guest can be taken back to where it began, where every device works.
func FuzzMachine(f *testing.F) {
	one, other := newWorld(f), newWorld(f)
	r := rand.New(rand.NewPCG(5, 6))
	for range *programs {
		program := make([]byte, 1500)
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		f.Add(program)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4096 {
			return
		}
		for _, w := range []*world{one, other} {
			w.t, w.program = t, program
			w.out.fail(false)
			w.back()
		}
		one.goes(other)
		here, there := other, one
		here.resume()
		for len(here.program) > 0 {
			if now := here.step(there); now != here {
				here, there = now, here
			}
		}
		here.recovers()
		there.resume()
		there.recovers()
	})
}
