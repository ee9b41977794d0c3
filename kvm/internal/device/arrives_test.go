package device

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// portsOf returns the ports by which a guest reads and writes a device.
func portsOf(s State) (ports Ports, count int) {
	switch d := s.(type) {
	case *Serial:
		return d, SerialPorts
	case *CMOS:
		return d, CMOSPorts
	case *PM:
		return PMControl{d}, PMControlPorts
	case *PCI:
		return d, PCIPorts
	}
	return s.(Ports), regConfig
}

// scribble writes registers at random, half of the values small, and has no ring looked at.
func scribble(r *rand.Rand, s State) {
	ports, count := portsOf(s)
	for range 300 {
		off, p := uint16(r.IntN(count)), make([]byte, 1<<r.IntN(3))
		v := r.Uint32()
		if r.IntN(2) == 0 {
			v %= 64
		}
		put(p, v)
		switch d := s.(type) {
		case *PCI:
			d.write(uint32(r.IntN(4)), uint32(r.IntN(0x40)), v, len(p))
			continue
		case machinery:
			if off == regNotify || off == regStatus && p[0] == 0 {
				continue
			}
		}
		_ = ports.Out(off, p) // it may switch the machine off
	}
}

// seen returns all that a guest reads of a device.
func seen(s State) (list []byte) {
	if p, ok := s.(*PCI); ok {
		for at := range uint32(4 * 256) {
			list = append(list, byte(p.read(0x80000000|at/256<<11|at%256, 1)))
		}
		return list
	}
	ports, count := portsOf(s)
	for off := range count {
		p := []byte{0}
		ports.In(uint16(off), p)
		list = append(list, p...)
	}
	return list
}

// All that a driver has set is state: where it is loaded, each register reads the same, and what is
// saved there is the same.
func TestAllThatADriverHasSetArrives(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		twins := all(t)
		for name, from := range all(t) {
			to := twins[name]
			scribble(r, from)
			scribble(r, to)
			state := stream(t, from)
			must(t, load(to, state))
			if got := stream(t, to); !bytes.Equal(got, state) {
				t.Errorf("%s: saved there it is\n%x, was\n%x", name, got, state)
			}
			if got, want := seen(to), seen(from); !bytes.Equal(got, want) {
				t.Errorf("%s: its registers read\n%x there, and here\n%x", name, got, want)
			}
		}
	}
}

// The interrupt controllers are loaded before the devices, and with them the levels that their lines
// had on the other host: a device sets its line, though it has set it to that level before.
func TestALoadedDeviceSetsItsLineAnew(t *testing.T) {
	for _, up := range []bool{false, true} {
		disk := func() (State, *board) {
			r := newBlkRig(t, 1<<20)
			if up {
				r.request(blkSync, 0)
				drain(r.blk.step)
			}
			return r.blk, r.board
		}
		port := func() (State, *board) {
			c := newCom(t)
			if up {
				c.out(uartIER, ierTransmit)
			}
			return c.Serial, c.board
		}
		for name, made := range map[string]func() (State, *board){"disk": disk, "serial": port} {
			from, _ := made()
			to, b := made()
			if level, _ := b.raised(); level != up {
				t.Fatal(name, "is not as this test wants it")
			}
			b.line(!up)
			must(t, load(to, stream(t, from)))
			if level, _ := b.raised(); level != up {
				t.Errorf("%s: the line is up: %v, want %v", name, level, up)
			}
		}
	}
}

// What no device of this package can have become is no state.
func TestAStateThatNoDriverHasBroughtAboutIsRefused(t *testing.T) {
	for name, change := range map[string]func(n *Net){
		"features that were not offered":    func(n *Net) { n.features |= 1 << 31 },
		"features that are not there":       func(n *Net) { n.offered |= 1 << 31 },
		"features that every card has":      func(n *Net) { n.offered &^= netStatus; n.features &^= netStatus },
		"a ring that ends behind memory":    func(n *Net) { n.queues[1].pfn = testMemory/queueAlign - 2 },
		"a ring far from memory":            func(n *Net) { n.queues[0].pfn = 1<<32 - 1 },
		"the address of another card":       func(n *Net) { n.config[5]++ },
		"frames that wait and are too long": func(n *Net) { n.waiting.add(vnetLen + MaxBigFrame + 1) },
		"frames that wait and are no frames": func(n *Net) {
			clear(n.waiting.add(vnetLen + MinFrame - 1))
		},
		"a header that does not fit the frame": func(n *Net) {
			b := n.waiting.add(vnetLen + 60)
			clear(b)
			b[0], b[6] = 1, 60 // a checksum that begins behind the frame
		},
	} {
		from, to := newOffloadRig(t, allFeatures).nic, newOffloadRig(t, allFeatures).nic
		before := stream(t, to)
		change(from)
		if err := load(to, stream(t, from)); !errors.Is(err, vmstate.ErrValue) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(stream(t, to), before) {
			t.Errorf("%s: half of it was taken", name)
		}
	}
}

// A driver that resets its device finds what it found first, whatever another has left.
func TestAResetLeavesNothing(t *testing.T) {
	for name, s := range all(t) {
		d, ok := s.(machinery)
		if !ok {
			continue
		}
		scribble(rand.New(rand.NewPCG(1, 2)), d)
		must(t, d.Out(regStatus, []byte{0}))
		for q := range 2 {
			for reg, n := range map[uint16]int{regFeatures: 4, regPFN: 4, regSelect: 2, regStatus: 1, regISR: 1} {
				p := make([]byte, 4)
				d.In(reg, p[:n])
				if v := value(p); v != 0 && (reg != regSelect || q == 0) {
					t.Errorf("%s: register %d is %#x of queue %d", name, reg, v, q)
				}
			}
			must(t, d.Out(regSelect, []byte{1, 0}))
		}
	}
}

// Frames leave a queue whole and in the order in which they came, wherever in its memory they are.
func TestFramesLeaveAsTheyCame(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	q, n := newFrames(1000), 0
	var model [][]byte
	for range 5000 {
		if r.IntN(2) == 0 {
			f := make([]byte, 1+r.IntN(200))
			for i := range f {
				f[i] = byte(r.Uint32())
			}
			b := q.add(len(f))
			if (b == nil) != (n+frameLen+len(f) > 1000) {
				t.Fatalf("%d bytes beside %d: room %v", len(f), n, b != nil)
			}
			if b != nil {
				copy(b, f)
				model, n = append(model, f), n+frameLen+len(f)
			}
		} else if len(model) > 0 {
			if !bytes.Equal(q.first(), model[0]) {
				t.Fatalf("%x has come as %x", model[0], q.first())
			}
			q.drop()
			n -= frameLen + len(model[0])
			model = model[1:]
		} else if q.first() != nil {
			t.Fatal("a frame that nobody has added")
		}
	}
}
