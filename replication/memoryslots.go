package replication

// memorySlots keeps blocks in memory, in slabs that are allocated as they
// are needed and kept.
type memorySlots struct {
	slabs [][]byte
}

const slabSlots = 64 // 256 KiB

func newMemorySlots(maxBytes int64) *memorySlots {
	n := maxBytes / BlockSize
	return &memorySlots{slabs: make([][]byte, (n+maxLent)/slabSlots+1)}
}

func (m *memorySlots) grow(n uint32) {
	for i := int(n+slabSlots-1)/slabSlots - 1; i >= 0 && m.slabs[i] == nil; i-- {
		m.slabs[i] = make([]byte, slabSlots*BlockSize)
	}
}

func (m *memorySlots) at(slot uint32, at, n int) []byte {
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

// together returns how many of the slots, whose numbers are plus one, are next to each
// other in memory.
func (m *memorySlots) together(slots []uint32) int {
	n := 1
	for n < len(slots) && slots[n] == slots[n-1]+1 && slots[n-1]%slabSlots != 0 {
		n++
	}
	return n
}
