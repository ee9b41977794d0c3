package replication

import "math/bits"

// memorySlots keeps blocks in memory, in slabs that are allocated as they
// are needed and kept. The first slots are in smaller slabs: many disks are written
// little between two checkpoints.
type memorySlots struct {
	small [5][]byte // for 4, 4, 8, 16 and 32 slots
	slabs []*slab   // for all after them; the first is not used
}

type slab [slabSlots * BlockSize]byte

const (
	slabSlots  = 64 // 256 KiB
	firstSlots = 4
)

func newMemorySlots(maxBytes int64) *memorySlots {
	n := maxBytes / BlockSize
	return &memorySlots{slabs: make([]*slab, (n+maxLent)/slabSlots+1)}
}

// smallSlab returns in which of the small slabs a slot is, and the first slot there.
func smallSlab(slot uint32) (i int, first uint32) {
	if i = bits.Len32(slot / firstSlots); i > 0 {
		first = firstSlots << (i - 1)
	}
	return i, first
}

func (m *memorySlots) grow(n uint32) {
	if n == 0 {
		return
	}
	for i := (n - 1) / slabSlots; i > 0 && m.slabs[i] == nil; i-- {
		m.slabs[i] = new(slab)
	}
	for last := min(n, slabSlots) - 1; ; {
		i, first := smallSlab(last)
		if m.small[i] != nil {
			return
		}
		m.small[i] = make([]byte, max(first, firstSlots)*BlockSize)
		if i == 0 {
			return
		}
		last = first - 1
	}
}

func (m *memorySlots) at(slot uint32, at, n int) []byte {
	if slot < slabSlots {
		i, first := smallSlab(slot)
		from := int(slot-first)*BlockSize + at
		return m.small[i][from : from+n]
	}
	from := int(slot%slabSlots)*BlockSize + at
	return m.slabs[slot/slabSlots][from : from+n]
}

func (m *memorySlots) readSlot(slot uint32, p []byte, at int) error {
	copy(p, m.at(slot, at, len(p)))
	return nil
}

func (m *memorySlots) writeSlot(slot uint32, p []byte, at int) error {
	copy(m.at(slot, at, len(p)), p)
	return nil
}

// begins reports whether a slot is the first of its slab.
func begins(slot uint32) bool {
	if slot < slabSlots {
		_, first := smallSlab(slot)
		return slot == first
	}
	return slot%slabSlots == 0
}

// together returns how many slots, from the first of the list on, follow each other in
// memory. The list has each slot's index plus one.
func (m *memorySlots) together(slots []uint32) int {
	n := 1
	for n < len(slots) && slots[n] == slots[n-1]+1 && !begins(slots[n]-1) {
		n++
	}
	return n
}
