package replication

import (
	"encoding/binary"
	"testing"
)

// Each slot has memory of its own, whatever was asked for before it, and few slots take little.
func TestSlotsInMemoryAreApart(t *testing.T) {
	for _, steps := range [][]uint32{{0, 1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 63, 64, 65, 128, 129, 300}, {300}, {64, 300}, {33, 129, 300}} {
		m := newMemorySlots(300 * BlockSize)
		var had uint32
		for _, n := range steps {
			m.grow(n)
			var block [BlockSize]byte
			for ; had < n; had++ {
				binary.BigEndian.PutUint32(block[:], had+1)
				binary.BigEndian.PutUint32(block[BlockSize-4:], had+1)
				if err := m.writeSlot(had, block[:], 0); err != nil {
					t.Fatal(err)
				}
			}
			bytes := 0
			for _, s := range m.small {
				bytes += len(s)
			}
			if n > slabSlots && bytes != slabSlots*BlockSize || n <= slabSlots && bytes > max(2*int(n), firstSlots)*BlockSize {
				t.Errorf("%d slots take %d bytes", n, bytes)
			}
			for slot := range n {
				var first, last [4]byte
				if m.readSlot(slot, first[:], 0) != nil || m.readSlot(slot, last[:], BlockSize-4) != nil || first != last || binary.BigEndian.Uint32(first[:]) != slot+1 {
					t.Fatalf("slot %d of %d holds %x and %x", slot, n, first, last)
				}
			}
		}
	}
}
