package compare

import (
	"math/bits"
	"testing"
	"unsafe"
)

func TestAQueueOfOnePacketTakesNoMemory(t *testing.T) {
	a, b, c := new(pkt), new(pkt), new(pkt)
	q := new(queue)
	for range 3 {
		q.push(a)
		if &q.items[0] != &q.one[0] || q.remove(0) != a {
			t.Fatal("the packet is elsewhere")
		}
	}
	q.push(a)
	q.push(b)
	q.push(c)
	for i, want := range []*pkt{a, b, c} {
		if q.remove(0) != want {
			t.Errorf("packet %d is another", i)
		}
	}
}

// With thousands of connections, what a matched pair costs more than with ten is the memory
// that it touches. A connection is longer than 512 bytes, and so Go has eight bytes in front
// of it.
func TestAMatchedPairTouchesFiveCacheLinesOfItsConnection(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("a connection is shorter there")
	}
	var c conn
	x := &c.tcp
	lines := make(map[uintptr]bool)
	touch := func(p unsafe.Pointer, size uintptr) {
		at := uintptr(p) - uintptr(unsafe.Pointer(&c)) + 8
		lines[at/64], lines[(at+size-1)/64] = true, true
	}
	for _, p := range []*uint32{
		&c.key.Ports, &c.age, &x.told.ack, &x.told.edge, &x.told.end, &x.cover.ack, &x.cover.edge, &x.cover.done,
		&x.said.end, &x.left.ack, &x.left.edge, &x.left.ts,
	} {
		touch(unsafe.Pointer(p), 4)
	}
	for _, p := range []*bool{
		&c.apart, &c.blind, &c.diverged, &x.told.acks, &x.told.edges, &x.told.data, &x.told.scaled,
		&x.cover.acks, &x.cover.edges, &x.cover.agreed, &x.cover.inStep, &x.cover.fin,
		&x.said.past, &x.said.ends, &x.said.rsts, &x.said.fins, &x.said.syns, &x.left.acks, &x.left.edges, &x.left.tss,
	} {
		touch(unsafe.Pointer(p), 1)
	}
	touch(unsafe.Pointer(&c.key.Src), 4)
	touch(unsafe.Pointer(&c.key.Dst), 4)
	touch(unsafe.Pointer(&c.plain), 1)
	touch(unsafe.Pointer(&c.loner), 1)
	touch(unsafe.Pointer(&c.matched), 2)
	touch(unsafe.Pointer(&c.used), 8)
	touch(unsafe.Pointer(&c.owed), 8)
	touch(unsafe.Pointer(&c.p), unsafe.Sizeof(c.p))
	touch(unsafe.Pointer(&c.s), unsafe.Offsetof(c.s.one))
	touch(unsafe.Pointer(&x.flight), 8)
	touch(unsafe.Pointer(&x.told.scale), 1)
	touch(unsafe.Pointer(&x.left.last), 8)
	touch(unsafe.Pointer(&x.left.win), 2)
	if len(lines) > 5 {
		t.Errorf("%d lines: %v", len(lines), lines)
	}
}
