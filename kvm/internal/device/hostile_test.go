package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// Memory of a hostile guest: two pieces, and what lies behind them in the host, which no device
// may touch. Its rings are where it says; these are where it says so at first.
const (
	hostileLow    = 0x40000
	hostileHigh   = 0x10000
	hostileBehind = 0x1000
	hostileRings  = 0x10000 // and 0x4000 behind it
	hostileHeader = 0x18000
	hostileData   = 0x20000
)

// machinery is what all virtio devices of the package have.
type machinery interface {
	State
	Ports
	step() bool
}

// hostile is a driver without manners. Its program is what a fuzzer makes up: it writes
// descriptors, rings, requests and registers, takes its queues elsewhere, and is moved to another
// host in between.
type hostile struct {
	t       testing.TB
	program []byte
	all     []byte // its memory, and what lies behind
	shadow  []byte // the same, as it is if every write of the device was marked
	mem     *Memory
	level   bool // of the device's line
	grows   bool // the disk may grow
	rings   [2]uint64
	avail   [2]uint16
	reads   []byte // what it has read from registers

	make  func() machinery
	dev   machinery
	disk  *store
	up    *uplink
	chaos *chance
}

// chance is a source of randomness that can fail.
type chance struct {
	*rand.ChaCha8
	err error
}

// Read implements io.Reader.
func (c *chance) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	return c.ChaCha8.Read(p)
}

func newHostile(t testing.TB, which uint8, program []byte) *hostile {
	h := &hostile{
		t: t, program: program,
		all:    make([]byte, hostileLow+hostileHigh+hostileBehind),
		rings:  [2]uint64{hostileRings, hostileRings + 0x4000},
		disk:   &store{data: make([]byte, 64<<10)},
		up:     &uplink{room: make(chan struct{}, 1)},
		chaos:  &chance{ChaCha8: rand.NewChaCha8([32]byte{})},
		shadow: make([]byte, hostileLow+hostileHigh+hostileBehind),
	}
	h.mem = NewMemory(h.all[:hostileLow+hostileHigh], hostileLow, func(gpa, n uint64) {
		at := h.host(gpa)
		copy(h.shadow[at:at+n], h.all[at:])
	})
	line := func(level bool) { h.level = level }
	h.make = []func() machinery{
		func() machinery {
			disk := NewBlk(h.disk, 1, "hostile", h.mem, line, nil)
			disk.servers[0].buf = make([]byte, 2*SectorSize) // so that requests have several parts
			return disk
		},
		func() machinery { return NewNet(h.up, 0, [6]byte{2}, h.mem, line, nil) },
		func() machinery { return NewNet(h.up, 12, [6]byte{2}, h.mem, line, nil) },
		func() machinery { return NewRNG(h.chaos, h.mem, line, nil) },
	}[which%4]
	h.dev = h.make()
	return h
}

// host returns where an address is in all.
func (h *hostile) host(gpa uint64) uint64 {
	if gpa >= high {
		return gpa - high + hostileLow
	}
	return gpa
}

// next takes a byte of the program, of which there is no end.
func (h *hostile) next() (v byte) {
	if len(h.program) > 0 {
		v, h.program = h.program[0], h.program[1:]
	}
	return v
}

func (h *hostile) uint16() uint16 { return uint16(h.next()) | uint16(h.next())<<8 }
func (h *hostile) uint32() uint32 { return uint32(h.uint16()) | uint32(h.uint16())<<16 }

// poke writes memory where there is some, as the guest does.
func (h *hostile) poke(gpa uint64, p []byte) {
	if h.mem.has(gpa, uint64(len(p))) {
		copy(h.all[h.host(gpa):], p)
		copy(h.shadow[h.host(gpa):], p)
	}
}

// address is one that means something: in the rings, at an end of memory, between its pieces.
func (h *hostile) address() uint64 {
	list := [...]uint64{
		hostileHeader, hostileData, hostileData + 0x1000, hostileData + 0x8000,
		h.rings[0], h.rings[0] + availAt, h.rings[0] + usedAt, h.rings[1] + usedAt,
		0, hostileLow - 600, hostileLow, high - 8, high, high + hostileHigh - 512, high + hostileHigh, 1<<64 - 16,
	}
	return list[h.next()%16] + uint64(h.next()%32)
}

func (h *hostile) length() uint32 {
	list := [...]uint32{16, 512, 1, 1, 0, 10, 12, 512, 1024, 1526, 4096, 0x8000, 1 << 20, 1<<31 + 1, 1<<32 - 1, 60}
	return list[h.next()%16]
}

// out writes a register.
func (h *hostile) out(reg uint16, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	must(h.t, h.dev.Out(reg, p[:n]))
}

func (h *hostile) put16(gpa uint64, v uint16) {
	h.poke(gpa, binary.LittleEndian.AppendUint16(nil, v))
}

// offer makes a head available.
func (h *hostile) offer(q int, head uint16) {
	h.put16(h.rings[q]+availAt+4+2*uint64(h.avail[q]%QueueSize), head)
	h.avail[q]++
	h.put16(h.rings[q]+availAt+2, h.avail[q])
}

// place takes a queue to a page.
func (h *hostile) place(q int, base uint64) {
	h.out(regSelect, 2, uint32(q))
	h.out(regPFN, 4, uint32(base/queueAlign))
	h.rings[q] = base
}

// work has the device work, for so long that a ring that is not rewritten meanwhile is served.
func (h *hostile) work() { h.steps(2 * QueueSize) }

// steps has the device work for at most so many steps.
func (h *hostile) steps(most int) {
	for n := 0; n < most && h.dev.step(); n++ {
	}
}

// move takes the device to another host: whatever a driver has done, its state is taken there, and
// is the same.
func (h *hostile) move() {
	h.t.Helper()
	state := stream(h.t, h.dev)
	twin := h.make()
	if err := load(twin, state); err != nil {
		h.t.Fatalf("a state that a driver has brought about is refused: %v", err)
	}
	if got := stream(h.t, twin); !bytes.Equal(got, state) {
		h.t.Fatalf("another state has arrived:\n% x\n% x", got, state)
	}
	h.dev = twin
}

// step performs one operation of the program.
func (h *hostile) step() {
	op := h.next()
	q := int(op >> 7)
	switch op % 16 {
	case 0, 1, 2:
		i, flags, next := h.next(), h.next(), h.next()
		if flags&0xf0 != 0 { // seldom an indirect one
			flags &^= descIndirect
		}
		d := binary.LittleEndian.AppendUint64(nil, h.address())
		d = binary.LittleEndian.AppendUint32(d, h.length())
		d = append(d, flags&7, 0, next%32, flags>>7*next>>7)
		h.poke(h.rings[q]+16*uint64(i%32), d)
	case 3, 4:
		h.offer(q, uint16(h.next()%33)*(1+uint16(h.next()/250)*250))
	case 5:
		h.avail[q] += uint16(int8(h.next()))
		h.put16(h.rings[q]+availAt+2, h.avail[q])
	case 6:
		h.put16(h.rings[q]+availAt, h.uint16())
	case 7:
		header := binary.LittleEndian.AppendUint64(nil, uint64(h.next()%10))
		h.poke(hostileHeader, binary.LittleEndian.AppendUint64(header, uint64(h.next())<<(h.next()/240*50)))
	case 8:
		h.out(uint16(h.next()), 1<<(h.next()%3), h.uint32())
	case 9:
		var p [4]byte
		h.dev.In(uint16(h.next()), p[:1<<(h.next()%3)])
		h.reads = append(h.reads, p[:]...)
	case 10:
		h.out(regNotify, 2, uint32(h.next()%3))
		if n := h.next(); n%4 == 0 {
			h.steps(int(n / 64))
		} else {
			h.work()
		}
	case 11:
		h.receive()
	case 12:
		if h.next()%4 == 0 {
			h.out(regStatus, 1, 0)
			h.avail = [2]uint16{}
		}
	case 13:
		bases := [...]uint64{hostileRings, hostileRings + 0x4000, hostileData, 0, high, hostileLow - 0x3000, hostileLow - 0x2000, 1<<44 - queueAlign}
		h.place(q, bases[h.next()%8])
		h.avail[q] = 0
	case 14:
		h.disk.err, h.chaos.err, h.up.full = nil, nil, false
		switch h.next() % 4 {
		case 0, 2:
			h.disk.err, h.chaos.err, h.up.full = errors.New("no"), errors.New("no"), true
		case 1:
			h.grow()
		}
	case 15:
		switch h.next() % 4 {
		case 0:
			h.move()
		case 1:
			h.spoil()
		default:
			h.out(regFeatures, 4, h.uint32())
		}
	}
}

// receive has a frame come, whose header is the program's.
func (h *hostile) receive() {
	n, ok := h.dev.(*Net)
	if !ok {
		return
	}
	gate := NewGate()
	if h.next()%4 > 0 {
		gate.Open()
	}
	f := make([]byte, n.vnet+int(h.length()%8192))
	if n.vnet > 0 && h.next()%2 == 0 {
		big, l4 := tcpFrame(h.next()%2 == 0, int(h.next()%2), int(h.uint16()%6000))
		f = append(append(vnet(h.next()%4, h.next()%6, h.uint16(), h.uint16()%3000, uint16(l4), 16), 0, 0), big...)
	}
	if err := n.Receive(gate, f); err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrFrame) {
		h.t.Fatal(err)
	}
}

// registers returns the common part of the device.
func (h *hostile) registers() *virtio {
	switch d := h.dev.(type) {
	case *Blk:
		return &d.virtio
	case *Net:
		return &d.virtio
	}
	return &h.dev.(*RNG).virtio
}

// check fails unless the device has written guest memory only, and has told of each byte; and
// unless its line is up just while it has something to say.
func (h *hostile) check() {
	h.t.Helper()
	if !bytes.Equal(h.all, h.shadow) {
		for i := range h.all {
			if h.all[i] != h.shadow[i] {
				h.t.Fatalf("the device wrote at %#x, and did not say so", i)
			}
		}
	}
	if v := h.registers(); h.level != (v.isr != 0) {
		h.t.Fatalf("the interrupt status is %#x, and the line is up: %v", v.isr, h.level)
	}
}

// recovers fails unless a driver with manners can work with the device after a reset.
func (h *hostile) recovers() {
	h.t.Helper()
	h.disk.err, h.chaos.err, h.up.full = nil, nil, false
	h.out(regStatus, 1, 0)
	if v := h.registers(); h.level || v.isr|v.status != 0 || v.features != 0 {
		h.t.Fatal("the reset has left something")
	}
	h.poke(0, make([]byte, hostileLow))
	q := 0
	if _, ok := h.dev.(*Net); ok {
		q = netTransmit
	}
	h.avail = [2]uint16{}
	h.place(q, hostileRings)
	for i, p := range []part{{hostileHeader, 64, false}, {hostileData, 1, true}} {
		var flags uint16 = descNext
		if p.write {
			flags = descWrite
		}
		d := binary.LittleEndian.AppendUint64(nil, p.addr)
		d = binary.LittleEndian.AppendUint32(d, p.n)
		d = binary.LittleEndian.AppendUint16(d, flags)
		h.poke(hostileRings+16*uint64(i), binary.LittleEndian.AppendUint16(d, 1))
	}
	h.poke(hostileHeader, []byte{blkSync + 4}) // the disk says who it is
	h.offer(q, 0)
	h.work()
	if got := binary.LittleEndian.Uint16(h.all[hostileRings+usedAt+2:]); got != 1 {
		h.t.Fatalf("after a reset %d requests are served, of 1", got)
	}
}

// A driver may do what it likes: the device works on guest memory only, tells of all that it writes,
// has a state that another host takes, and works again after a reset.
func FuzzDriver(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 64 {
		program := make([]byte, 1200)
		for j := range program {
			program[j] = byte(r.Uint32())
		}
		f.Add(uint8(i), program)
	}
	f.Fuzz(func(t *testing.T, which uint8, program []byte) {
		if len(program) > 4096 {
			return
		}
		h := newHostile(t, which, program)
		h.grows = true
		h.place(0, h.rings[0])
		if which%4 == 1 || which%4 == 2 {
			h.place(1, h.rings[1])
		}
		for len(h.program) > 0 {
			h.step()
		}
		h.work()
		h.check()
		h.move()
		h.recovers()
		h.check()
	})
}

// However a driver has laid out its ring, frames that have waited are dropped in the time that it
// takes to look at one ring: the driver's vCPU waits for that, and so does a pause.
func TestFramesThatNeverHaveRoomCostOneLookAtTheRing(t *testing.T) {
	for name, lay := range map[string]func(r *ring){
		"empty buffers": func(r *ring) {
			for i := range uint16(QueueSize) {
				r.desc(i, part{testData, 0, true}, 0, 0)
				r.push(i)
			}
		},
		"chains that share descriptors": func(r *ring) {
			for i := range uint16(QueueSize - 1) {
				r.desc(i, part{testData, 1, false}, descNext, i+1)
			}
			r.desc(QueueSize-1, part{testData, 1, false}, 0, 0)
			for range QueueSize {
				r.push(0)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newOffloadRig(t, allFeatures)
			closed, waiting := NewGate(), 0
			for r.nic.Receive(closed, make([]byte, 12+MinFrame)) == nil {
				waiting++
			}
			lay(r.rx)
			looks := 0
			r.nic.mem.Ensure(func(_, _ uint64) { looks++ })
			r.rx.kick()
			if limit := 4 * QueueSize; looks > limit {
				t.Errorf("for %d frames the card has looked at memory %d times, want at most %d", waiting, looks, limit)
			}
			if r.nic.queues[netReceive].broken {
				return // and left alone
			}
			if n := int(r.nic.Dropped()) - 1; n != waiting { // one had no room in the card
				t.Errorf("%d of %d frames are dropped", n, waiting)
			}
		})
	}
}

// Frames that a driver does not take whole, which came when another driver had the card, are dropped in the
// time that it takes to look at one ring, however many descriptors a chain has.
func TestFramesThatANewDriverDoesNotTakeCostOneLookAtTheRing(t *testing.T) {
	for _, features := range []uint32{0, netMerge} {
		r := newOffloadRig(t, allFeatures)
		closed, waiting := NewGate(), 0
		for {
			big, l4 := tcpFrame(false, 0, 8+waiting%2000)
			header := vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16)
			if r.nic.Receive(closed, join(header, []byte{0, 0}, big)) != nil {
				break
			}
			waiting++
		}
		r.rx.out(regStatus, 1, 0)
		r.rx.out(regFeatures, 4, features)
		r.rx.out(regSelect, 2, netReceive)
		r.rx.out(regPFN, 4, 0x10000/queueAlign)
		for i := range uint16(QueueSize) {
			p, flags := part{testData, 0, true}, uint16(descNext)
			if i == QueueSize-1 {
				p.n, flags = 4096, 0
			}
			r.rx.desc(i, p, flags, i+1)
		}
		r.rx.push(0)
		looks := 0
		r.nic.mem.Ensure(func(_, _ uint64) { looks++ })
		r.rx.kick()
		if limit := 4 * QueueSize; looks > limit {
			t.Errorf("for %d frames the card has looked at memory %d times, want at most %d", waiting, looks, limit)
		}
		if n := int(r.nic.Dropped()) - 1; n != waiting { // one had no room in the card
			t.Errorf("%d of %d frames are dropped", n, waiting)
		}
	}
}
