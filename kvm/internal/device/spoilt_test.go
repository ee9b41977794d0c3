package device

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// spoil has a state arrive that no driver has brought about: some of its fields have any values. Where it is
// taken, the driver goes on with the device that has it.
func (h *hostile) spoil() {
	h.t.Helper()
	state := stream(h.t, h.dev)
	maker, twin := h.make(), h.make()
	must(h.t, load(maker, state))
	was := h.dev
	h.dev = maker
	for range 1 + h.next()%3 {
		h.field()
	}
	state = stream(h.t, maker)
	h.dev = was
	if err := load(twin, state); err != nil {
		if !errors.Is(err, vmstate.ErrValue) {
			h.t.Fatalf("a state is refused with %v", err)
		}
		was.Apply() // what its lines were, which the device of the other state has moved
		return
	}
	h.dev = twin
	h.bounded()
	for q := range h.registers().queues { // and finds what is offered next
		if q < len(h.rings) && h.next()%2 == 0 {
			h.avail[q] = h.registers().queues[q].last
			h.put16(h.rings[q]+availAt+2, h.avail[q])
		}
	}
}

// field gives a field of the device any value.
func (h *hostile) field() {
	v := h.registers()
	q := &v.queues[int(h.next())%len(v.queues)]
	switch h.next() % 10 {
	case 0:
		v.offered, v.features = h.uint32()&v.can|v.can&h.uint32(), h.uint32()&v.can
	case 1:
		v.selected = h.uint16()
	case 2:
		v.status = h.next()
	case 3:
		v.isr = h.next()
	case 4:
		q.pfn = [...]uint32{0, 1, hostileRings / queueAlign, hostileLow/queueAlign - 1, high / queueAlign, 1<<32 - 1}[h.next()%6]
	case 5:
		q.last = h.uint16()
	case 6:
		q.used = h.uint16()
	case 7:
		q.broken = !q.broken
	case 8:
		odd := uint64(h.next() / 250) // which is refused
		for n := min(int(h.next())+1, QueueSize-len(q.begun)); n > 0; n-- {
			q.begun = append(q.begun, begun{head: uint16(n*7) % (QueueSize + uint16(h.next()/255)), done: uint64(h.length())&^(SectorSize-1) | odd})
		}
	case 9:
		for i := range min(v.varies, len(v.config)) {
			v.config[i] = h.next() & [...]byte{0xff, 0, 0, 0, 0, 0, 0, 0}[i]
		}
	}
}

// grow has the disk grow, and the driver be told.
func (h *hostile) grow() {
	h.t.Helper()
	d, ok := h.dev.(*Blk)
	if !ok || !h.grows || len(h.disk.data) > 1<<20 {
		return
	}
	h.disk.data = append(slices.Clip(h.disk.data), make([]byte, int(h.uint16()))...)
	gate := NewGate()
	if h.next()%2 == 0 {
		gate.Open()
	}
	must(h.t, d.Grown(gate, h.disk.Size()))
	if h.next()%2 == 0 {
		d.Opened()
	}
}

// bounded fails if the device keeps more than its rings have.
func (h *hostile) bounded() {
	h.t.Helper()
	for i, q := range h.registers().queues {
		if len(q.begun) > QueueSize {
			h.t.Fatalf("of queue %d, which has %d descriptors, %d requests were begun", i, QueueSize, len(q.begun))
		}
	}
}

// Whatever a state has in the fields of a device, and its rings in memory, the device that takes it works on guest memory
// only, has a state that another host takes, and works again after a reset.
func TestADeviceThatTookAnyStateGoesOn(t *testing.T) {
	programs := 400
	if testing.Short() {
		programs = 40
	}
	taken, r := 0, rand.New(rand.NewPCG(17, 19))
	for i := range programs {
		h := newHostile(t, uint8(i), program(1000, r))
		h.grows = true
		h.place(0, h.rings[0])
		if i%4 == 1 || i%4 == 2 {
			h.place(1, h.rings[1])
		}
		for len(h.program) > 0 {
			if before := h.dev; h.next()%16 == 0 {
				if h.spoil(); h.dev != before {
					taken++
				}
			} else {
				h.step()
			}
		}
		h.work()
		h.bounded()
		h.check()
		h.move()
		h.recovers()
		h.check()
	}
	if taken < programs {
		t.Errorf("%d states were taken: this test tests little", taken)
	}
	t.Logf("%d states were taken", taken)
}

// program makes up what a driver does.
func program(n int, r *rand.Rand) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
