package device

import (
	"bytes"
	"testing"
)

// A guest may run before its memory is there: a device that touched a page before it has
// come would find nothing in it.
func TestADeviceWaitsForMemoryBeforeItTouchesIt(t *testing.T) {
	b := newBoard(t)
	mem := b.memory()
	disk := &store{data: bytes.Repeat([]byte{0xa5}, 1<<20)}
	r := &blkRig{b, nil, NewBlk(disk, 1, "lockstep", mem, b.line, nil), disk}
	r.ring = newRing(b, r.blk, 0, 0x10000)
	r.request(blkOut, 0, part{testData, 3 * 4096, false}) // in four pages, maybe
	copy(b.mem[testData:], bytes.Repeat([]byte{0x5a}, 3*4096))

	there, missing := bytes.Clone(b.mem), make(map[uint64]bool)
	for p := range uint64(testMemory / 4096) {
		missing[p] = true
	}
	clear(b.mem)
	mem.Ensure(func(off, n uint64) {
		for p := off / 4096; p <= (off+n-1)/4096; p++ {
			if missing[p] {
				delete(missing, p)
				copy(b.mem[p*4096:][:4096], there[p*4096:])
			}
		}
	})
	drain(r.blk.step)
	if got := b.mem[testStatus]; got != blkOK || !bytes.Equal(disk.data[:3*4096], there[testData:][:3*4096]) {
		t.Errorf("status %d", got)
	}
	r.want("a write", usedEntry{0, 1})
	if len(missing) < testMemory/4096/2 {
		t.Errorf("it has waited for all but %d pages", len(missing))
	}
	mem.Ensure(nil)
	mem.bytes(0, 4096)
}
