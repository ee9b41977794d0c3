package device

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// blkCapacity is how many bytes the capacity of a disk has, with which its configuration begins.
const blkCapacity = 8

// ErrDiskSize is the error of Grown for a length that the disk cannot be said to have.
var ErrDiskSize = errors.New("bad disk size")

// sectorsOf returns how many whole sectors a disk of so many bytes has.
func sectorsOf(size int64) uint64 { return uint64(max(size, 0)) / SectorSize }

// sectors returns how long the guest was told that its disk is. mu is held.
func (b *Blk) sectors() uint64 { return binary.LittleEndian.Uint64(b.config) }

// Grown has the guest told that the backend has become size bytes long: at once if the gate is
// open, or else by Opened. Any goroutine may call it.
func (b *Blk) Grown(gate *Gate, size int64) error {
	is, n := b.backend.Size(), sectorsOf(size)
	b.mu.Lock()
	defer b.mu.Unlock()
	was := max(b.has, b.sectors())
	switch {
	case size > is:
		return fmt.Errorf("%w: the guest cannot have %d bytes of a disk of %d", ErrDiskSize, size, is)
	case n < was:
		return fmt.Errorf("%w: the guest's disk of %d bytes does not become one of %d", ErrDiskSize, was*SectorSize, size)
	}
	b.has = n
	if gate.TryEnter() { // if not, whoever opens the gate calls Opened
		defer gate.Leave()
		b.tell()
	}
	return nil
}

// Opened is called when the gate has been opened: the guest is told of what its disk has become
// meanwhile, or was before the state was saved that it goes on from.
func (b *Blk) Opened() {
	b.mu.Lock()
	b.tell()
	b.mu.Unlock()
	b.work.kick()
}

// tell tells the driver if the disk has become longer. A driver that is setting the disk up is told
// when it has done so, and one that has not begun finds the new length. A legacy driver reads the
// eight bytes of the capacity one by one, and may read some of them before and some after they
// change; the interrupt has it read them again. mu is held, and the gate open.
func (b *Blk) tell() {
	if b.has <= b.sectors() || b.status != 0 && b.status&statusDriverOK == 0 {
		return
	}
	binary.LittleEndian.PutUint64(b.config, b.has)
	if b.status != 0 {
		b.isr |= isrConfig
		b.irq.set(true)
	}
}
