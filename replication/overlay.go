package replication

import (
	"fmt"
	"iter"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	sectorsPerBlock = BlockSize / SectorSize
	allSectors      = 1<<sectorsPerBlock - 1

	leafBlocks = 1024 // blocks that one leaf of the map describes: 4 MiB of disk
	leafCost   = 2    // slots that a leaf (8 KiB) is charged as
)

// blockEntry says which sectors of a block an overlay holds.
type blockEntry struct {
	slot uint32 // one more than the index of the slot; zero: no slot
	data uint8  // sectors whose content is in the slot
	zero uint8  // sectors that are zero; disjoint from data
}

func (e blockEntry) held() uint8 { return e.data | e.zero }

// leaf describes leafBlocks consecutive blocks. Its tag says of which part of
// the disk and in which generation of the overlay; a leaf with another tag
// says nothing. That makes emptying an overlay one increment.
type leaf struct {
	tag     atomic.Uint64
	entries [leafBlocks]blockEntry
}

// slots is where an overlay keeps the content of blocks.
type slots interface {
	// grow makes slots [0, n) usable. It is never called concurrently.
	grow(n uint32)
	readSlot(slot uint32, p []byte, at int) error
	writeSlot(slot uint32, p []byte, at int) error
}

// overlay is a sparse, bounded map from blocks to their content. The entry of
// a block belongs to whoever holds the range lock of the block; reset wants
// the whole disk locked. Looking up takes no further lock and allocates
// nothing.
type overlay struct {
	name  string
	store slots
	solid bool                   // zero sectors need a slot too
	dir   []atomic.Pointer[leaf] // the leaves, by their place in the disk
	gen   atomic.Uint32          // the present generation, see leaf
	max   uint32                 // bound in slots, map included
	// spare is how many slots of max are reserved for writes that cannot wait. urgent says
	// that this holds for all writes at present.
	spare  uint32
	urgent atomic.Bool // set by Drain, cleared by reset

	mu      sync.Mutex
	used    uint32       // slots in use, with those that the map is charged as
	next    uint32       // the last slot that was given out; 0: none
	unused  []uint32     // slots that were lent, and have been given back
	lent    int          // how many slots are lent, see fill
	touched []uint32     // leaves in use, indices into dir
	placed  []uint32     // those of them that are not in stale
	stale   []uint32     // leaves of past generations, for reuse; some of them are in use again
	blocks  atomic.Int64 // how many blocks are held
}

func newOverlay(name string, size, maxBytes int64, store slots) *overlay {
	o := &overlay{name: name, store: store}
	o.max = uint32(min(maxBytes/BlockSize, math.MaxUint32/2))
	blocks := (size + BlockSize - 1) / BlockSize
	o.dir = make([]atomic.Pointer[leaf], (blocks+leafBlocks-1)/leafBlocks)
	o.gen.Store(1)
	return o
}

func (o *overlay) tag(idx int64) uint64 { return uint64(o.gen.Load())<<32 | uint64(uint32(idx)) }

// entry returns the entry of block b, or nil if its leaf is not in use.
func (o *overlay) entry(b int64) *blockEntry {
	idx := b / leafBlocks
	l := o.dir[idx].Load()
	if l == nil || l.tag.Load() != o.tag(idx) {
		return nil
	}
	return &l.entries[b%leafBlocks]
}

// lookup returns which sectors of block b are held.
func (o *overlay) lookup(b int64) blockEntry {
	if e := o.entry(b); e != nil {
		return *e
	}
	return blockEntry{}
}

// empty reports whether no block is held.
func (o *overlay) empty() bool { return o.blocks.Load() == 0 }

// reserve makes sure that blocks [b0, b1) have map entries, and slots if
// withSlots, or changes nothing and returns an error that is ErrFull. It
// reports whether half of the bound is then used.
func (o *overlay) reserve(b0, b1 int64, withSlots bool) (half bool, err error) {
	return o.reserveWith(b0, b1, withSlots || o.solid, nil)
}

// reserveWith does what reserve does. If lent is not empty, it has the slots for the
// blocks, which none of them has yet.
func (o *overlay) reserveWith(b0, b1 int64, withSlots bool, lent []uint32) (half bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var need int64
	for b := b0; b < b1; {
		leafEnd := min((b/leafBlocks+1)*leafBlocks, b1)
		missing := o.entry(b) == nil
		if missing {
			need += leafCost
		}
		if withSlots {
			for c := b; c < leafEnd; c++ {
				if missing || o.entry(c).slot == 0 {
					need++
				}
			}
		}
		if need > 0 && need > o.bound()-int64(o.used) { // what is used may be more than the bound, after a growth
			return true, fmt.Errorf("%w: %s overlay, bound %d bytes", ErrFull, o.name, int64(o.max)*BlockSize)
		}
		b = leafEnd
	}
	o.used += uint32(need)
	for b := b0; b < b1; b++ {
		e := o.entry(b)
		if e == nil {
			e = &o.addLeaf(b / leafBlocks).entries[b%leafBlocks]
		}
		switch {
		case len(lent) > 0:
			e.slot = lent[b-b0]
		case withSlots && e.slot == 0:
			e.slot = o.takeSlot()
		}
	}
	if withSlots {
		o.store.grow(o.next)
	}
	return o.used >= o.max/2, nil
}

// takeSlot returns a slot, plus one, that no block has. The caller holds mu.
func (o *overlay) takeSlot() uint32 {
	if k := len(o.unused); k > 0 {
		slot := o.unused[k-1]
		o.unused = o.unused[:k-1]
		return slot
	}
	o.next++
	return o.next
}

// bound returns how many slots may be in use now.
func (o *overlay) bound() int64 {
	if o.urgent.Load() {
		return int64(o.max)
	}
	return int64(o.max - o.spare)
}

// fits reports whether blocks [b0, b1) would have room in an empty overlay.
func (o *overlay) fits(b0, b1 int64, withSlots bool) bool {
	need := leafCost * ((b1-1)/leafBlocks - b0/leafBlocks + 1)
	if withSlots || o.solid {
		need += b1 - b0
	}
	return need <= int64(o.max-o.spare)
}

// addLeaf puts an empty leaf at dir[idx], preferably one that an earlier
// generation left behind. The caller holds mu.
func (o *overlay) addLeaf(idx int64) *leaf {
	l := o.dir[idx].Load() // if not nil, it is stale and in its place
	if l == nil {
		l = o.staleLeaf()
		o.placed = append(o.placed, uint32(idx))
	}
	clear(l.entries[:])
	l.tag.Store(o.tag(idx)) // after this a reader may look inside
	o.dir[idx].Store(l)
	o.touched = append(o.touched, uint32(idx))
	o.stale = slices.Grow(o.stale, len(o.placed)) // here, and not in reset
	return l
}

// staleLeaf takes a leaf that a past generation left behind out of its place,
// or makes one. The caller holds mu.
func (o *overlay) staleLeaf() *leaf {
	for len(o.stale) > 0 {
		old := o.stale[len(o.stale)-1]
		o.stale = o.stale[:len(o.stale)-1]
		l := o.dir[old].Load()
		if l.tag.Load() != o.tag(int64(old)) {
			o.dir[old].Store(nil)
			return l
		}
		o.placed = append(o.placed, old) // it is in use again, and must be listed as placed when it is reset
	}
	return new(leaf)
}

// hold records that sectors of block b are held: data in its slot, zero
// without. The slot has been written.
func (o *overlay) hold(b int64, data, zero uint8) {
	e := o.entry(b)
	if e.held() == 0 && data|zero != 0 {
		o.blocks.Add(1)
	}
	e.data = e.data&^zero | data
	e.zero = e.zero&^data | zero
}

// reset empties the overlay and keeps its memory for the next generation. Its time does
// not depend on the content, except for a list of 4 bytes for each new leaf, which is
// copied. The whole disk is locked.
func (o *overlay) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gen.Load() == math.MaxUint32 { // tags would repeat
		for i := range o.dir {
			o.dir[i].Store(nil)
		}
		o.stale, o.placed = o.stale[:0], o.placed[:0]
		o.gen.Store(0)
	}
	o.gen.Add(1)
	o.stale = append(o.stale, o.placed...)
	o.placed, o.touched = o.placed[:0], o.touched[:0]
	o.used, o.next, o.unused = 0, 0, o.unused[:0]
	o.urgent.Store(false)
	o.blocks.Store(0)
}

func (o *overlay) usedBytes() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(o.used) * BlockSize
}

// leavesInUse returns the leaves in use, in order: leaf i describes
// leafBlocks blocks from i*leafBlocks on.
func (o *overlay) leavesInUse() []uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(slices.Values(o.touched))
}

// runs yields runs of consecutive set bits of a sector mask as [from, to).
func runs(mask uint8) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for mask != 0 {
			from := bits.TrailingZeros8(mask)
			to := from + bits.TrailingZeros8(^(mask >> from))
			if !yield(from, to) {
				return
			}
			mask &^= uint8(1<<to - 1)
		}
	}
}

// appender is a store that chooses its slots itself. Consecutive blocks that are appended
// together get slots that are stride apart. What it has returned is stable.
type appender interface {
	appendBlocks(b0 int64, p []byte) (slot uint32, half bool, err error)
	// appendZeroes is appendBlocks for n blocks of zeroes, which have no slots.
	appendZeroes(b0, n int64) (half bool, err error)
	stride() uint32
}

// put stores p as the content of blocks [b0, b1), of which nothing is held;
// it is shorter than they are only at the end of the disk.
func (o *overlay) put(b0, b1 int64, p []byte) (half bool, err error) {
	log, logged := o.store.(appender)
	if half, err = o.reserve(b0, b1, !logged); err != nil {
		return half, err
	}
	if logged {
		slot, half, err := log.appendBlocks(b0, p)
		if err != nil {
			return half, err
		}
		for b := b0; b < b1; b++ {
			o.entry(b).slot = slot + 1
			slot += log.stride()
			o.hold(b, uint8(1<<(min(len(p), BlockSize)/SectorSize)-1), 0)
			p = p[min(len(p), BlockSize):]
		}
		return half, nil
	}
	for b := b0; b < b1; b++ {
		c := min(len(p), BlockSize)
		if err := o.store.writeSlot(o.entry(b).slot-1, p[:c], 0); err != nil {
			return half, err
		}
		o.hold(b, uint8(1<<(c/SectorSize)-1), 0)
		p = p[c:]
	}
	return half, nil
}

// putZeroes stores zeroes as the content of blocks [b0, b1), of which nothing is
// held, of a disk of size bytes. They take no room but in the map, and in a
// log a header.
func (o *overlay) putZeroes(b0, b1, size int64) (half bool, err error) {
	if half, err = o.reserve(b0, b1, false); err != nil {
		return half, err
	}
	if log, logged := o.store.(appender); logged {
		if half, err = log.appendZeroes(b0, b1-b0); err != nil {
			return half, err
		}
	}
	for b := b0; b < b1; b++ {
		o.hold(b, 0, sectorsAt(b, size))
	}
	return half, nil
}
