package vmstate_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// move saves one device in a version and loads it into another, as a checkpoint
// would.
func move(version uint32, from, to vmstate.Device) error {
	const name = "dev"
	var source, target vmstate.Registry
	if err := source.Register(vmstate.Entry{Name: name, Version: version, MinVersion: 1}, from); err != nil {
		return err
	}
	if err := target.Register(vmstate.Entry{Name: name, Version: 3, MinVersion: 1}, to); err != nil {
		return err
	}
	var state bytes.Buffer
	w := qemufile.NewWriter(&state)
	if err := source.SaveDevices(w); err != nil {
		return err
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		return err
	}
	if err := target.LoadDevices(state.Bytes(), nil); err != nil {
		return err
	}
	return target.Commit()
}

// A disk has requests in flight, in a ring that exists once the guest has set it
// up (virtio-blk, nvme). The ring is a subsection, so that a guest without one
// sends nothing; its requests are counted; and what is derived from them is made
// when the load is committed, not before.
type disk struct {
	ring *requestRing // nil until the driver enables it

	resubmitted []string // derived: what goes to the disk again
}

type requestRing struct {
	head, tail uint16
	requests   []request
}

type request struct {
	sector uint64
	write  bool
	data   []byte
}

func (d *disk) VMState(f *vmstate.Fields) {
	vmstate.Optional(f, "dev/ring", 1, &d.ring, func(r *requestRing, f *vmstate.Fields) {
		f.Uint16("head", &r.head)
		f.Uint16("tail", &r.tail)
		f.Check("head and tail are in the ring", r.head < 256 && r.tail < 256)
		requests := vmstate.Counted(f, "in_flight", &r.requests, 256)
		vmstate.Structs(f, "requests", "disk-request", 1, requests, func(q *request, f *vmstate.Fields) {
			f.Uint64("sector", &q.sector)
			f.Bool("write", &q.write)
			f.Bytes("data", vmstate.Counted(f, "len", &q.data, 4096))
			f.OnCommit(func() error {
				d.resubmitted = append(d.resubmitted, fmt.Sprintf("sector %d, %d bytes", q.sector, len(q.data)))
				return nil
			})
		})
	})
}

// Requests in flight, in a ring behind a pointer.
func Example_ring() {
	from := &disk{ring: &requestRing{head: 2, tail: 4, requests: []request{{sector: 8, write: true, data: []byte("abc")}, {sector: 16}}}}
	to := &disk{}
	if err := move(1, from, to); err != nil {
		log.Fatal(err)
	}
	fmt.Println(to.ring.head, to.ring.tail, to.resubmitted)

	// A guest that has disabled its ring takes it away from the other side too.
	if err := move(1, &disk{}, to); err != nil {
		log.Fatal(err)
	}
	fmt.Println(to.ring == nil)

	// A state that no device can have is refused before anything is applied.
	from.ring.head = 300
	fmt.Println(move(1, from, to))
	// Output:
	// 2 4 [sector 8, 3 bytes sector 16, 0 bytes]
	// true
	// vmstate: section full 0 dev/0 v1 at offset 0: dev/ring:head and tail are in the ring: validation failed: unacceptable value
}

// A clock has had three versions. The first kept its mode in a byte, the second
// made it 32 bits wide and added how far it drifts, the third no longer has the
// lost ticks that it counted. A reader of version 3 takes all three; it says
// MinVersion 1 when it registers.
type wallClock struct {
	mode   uint32
	drift  int32
	loaded uint32
}

func (c *wallClock) VMState(f *vmstate.Fields) {
	if f.Version() < 2 {
		mode := uint8(c.mode)
		f.Uint8("mode", &mode)
		vmstate.Set(f, &c.mode, uint32(mode))
		vmstate.Set(f, &c.drift, 0) // what version 1 did
		return
	}
	f.Uint32("mode", &c.mode)
	f.Int32("drift", &c.drift)
	if f.Version() < 3 {
		f.Unused(4) // lost ticks
	}
}

func (c *wallClock) PostLoad(version uint32) error {
	if c.mode > 2 {
		return errors.New("no such mode")
	}
	c.loaded = version
	return nil
}

// Three versions of one device, and a reader of all.
func Example_versions() {
	for version := uint32(1); version <= 3; version++ {
		to := &wallClock{drift: 99}
		if err := move(version, &wallClock{mode: 2, drift: -5}, to); err != nil {
			log.Fatal(err)
		}
		fmt.Println(*to)
	}
	// Output:
	// {2 0 1}
	// {2 -5 2}
	// {2 -5 3}
}

// A keyboard has a queue of scan codes and, in a list, the keys that are held: an
// element may come and go while the guest runs, so nobody counts them.
type keyboard struct {
	queue []uint8
	held  []key
	irq   bool // derived
}

type key struct {
	code  uint16
	since int64
}

func (k *keyboard) VMState(f *vmstate.Fields) {
	f.Uint8s("queue", vmstate.Counted(f, "count", &k.queue, 16))
	vmstate.QTailQ(f, "held", "keyboard-key", 1, &k.held, 32, func(x *key, f *vmstate.Fields) {
		f.Uint16("code", &x.code)
		f.Timer("since", &x.since)
	})
	f.OnCommit(func() error {
		k.irq = len(k.queue) > 0
		return nil
	})
}

// A queue, and a list of what comes and goes.
func Example_queue() {
	to := &keyboard{queue: []uint8{1}}
	if err := move(1, &keyboard{queue: []uint8{0x1e, 0x9e}, held: []key{{0x2a, 1000}}}, to); err != nil {
		log.Fatal(err)
	}
	fmt.Println(*to)
	// More than the receiver has room for is refused, by the sender already.
	fmt.Println(move(1, &keyboard{queue: make([]uint8, 17)}, to))
	// Output:
	// {[30 158] [{42 1000}] true}
	// vmstate: section full 0 dev/0 v1 at offset 0: dev: count 17, at most 16: out of bounds
}
