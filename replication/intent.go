package replication

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// intentRegion is the unit, in bytes, of the write-intent bitmap: one bit
	// each.
	intentRegion = 1 << 20
	// intentActive is how many regions may stay marked although the secondary
	// has them: after a restart that much, 256 MiB, may have to be read again
	// beyond what was written since the last checkpoint.
	intentActive = 256

	intentSectorBits = (SectorSize - 4) * 8
	intentWords      = (SectorSize - 4) / 4 // of 32 bits
)

// intentBytes returns the room that the bitmap of a disk of size bytes takes.
func intentBytes(size int64) int64 {
	regions := (size + intentRegion - 1) / intentRegion
	return (regions + intentSectorBits - 1) / intentSectorBits * SectorSize
}

// intent is the durable bitmap of the regions of a primary's disk that its
// secondary may not have: a bit is stable before the first write to its region
// begins. Bits are cleared in memory when a checkpoint has the region, and on
// stable storage when many are, so that regions that are written again and
// again cost nothing. On the device a sector has 127 words of the bitmap and a
// checksum; a sector whose checksum is wrong counts as one with all bits set.
type intent struct {
	dev     *stableDisk
	base    int64 // where the bitmap begins on dev
	size    int64 // of the disk, in bytes
	regions int64 // how many the disk has

	mu      sync.Mutex
	ended   sync.Cond                      // broadcast when a write of the bitmap has ended
	writing bool                           // a goroutine writes the bitmap
	want    []uint32                       // regions that the secondary may not have
	disk    []uint32                       // regions that are marked on stable storage: all of want after a write of the bitmap
	unsure  bool                           // stable storage may have other marks than disk: a write had no room
	err     error                          // the first that is final
	lost    *atomic.Pointer[MetadataError] // is told of err
	access  *metadataAccess                // nil: the device is asked without it
}

// openIntent reads the bitmap for a disk of size bytes.
func openIntent(dev *stableDisk, size int64) (*intent, error) {
	n := intentBytes(size)
	if dev.Size() < metadataHead+n {
		return nil, fmt.Errorf("%w: no room for a bitmap of %d bytes in %d", ErrSize, n, dev.Size())
	}
	words := n / SectorSize * intentWords
	t := &intent{dev: dev, base: metadataHead, size: size, regions: (size + intentRegion - 1) / intentRegion,
		want: make([]uint32, words), disk: make([]uint32, words)}
	t.ended.L = &t.mu
	var p [SectorSize]byte
	for s := int64(0); s*SectorSize < n; s++ {
		if err := readFull(dev, p[:], t.base+s*SectorSize); err != nil {
			return nil, err
		}
		good := binary.LittleEndian.Uint32(p[SectorSize-4:]) == crc32.Checksum(p[:SectorSize-4], castagnoli)
		for i := range intentWords {
			w := binary.LittleEndian.Uint32(p[i*4:])
			if !good && p != [SectorSize]byte{} {
				w = ^uint32(0)
			}
			t.disk[int(s)*intentWords+i] = w
		}
	}
	copy(t.want, t.disk)
	return t, nil
}

// span returns the regions [r0, r1) that [off, off+n) touches.
func (t *intent) span(off, n int64) (r0, r1 int64) {
	if n <= 0 {
		return 0, 0
	}
	return off / intentRegion, (off+n-1)/intentRegion + 1
}

func (t *intent) has(set []uint32, r int64) bool { return set[r/32]&(1<<(r%32)) != 0 }

// ensure returns when the regions that [off, off+n) touches are marked on
// stable storage. Where there is no room for that, the next call tries again.
func (t *intent) ensure(off, n int64) error {
	r0, r1 := t.span(off, n)
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := r0; r < r1; r++ {
		t.want[r/32] |= 1 << (r % 32)
	}
	for {
		missing := false
		for r := r0; r < r1 && !missing; r++ {
			missing = !t.has(t.disk, r)
		}
		switch {
		case !missing:
			return nil
		case t.err != nil:
			return t.err
		case t.writing:
			t.ended.Wait()
		default:
			if err := t.write(func(want, disk uint32) uint32 { return want | disk }); err != nil {
				return err
			}
		}
	}
}

// write writes the words of the bitmap that merge changes, and makes them stable. The
// caller holds mu, which is released meanwhile. An error is final, unless it is for want of room: of the marks that were
// to be set some may be there then, and of those to be cleared some may be gone.
func (t *intent) write(merge func(want, disk uint32) uint32) error {
	t.writing = true
	next := make([]uint32, len(t.want))
	var sectors []int
	for i := range next {
		next[i] = merge(t.want[i], t.disk[i])
		if s := i / intentWords; (next[i] != t.disk[i] || t.unsure) && (len(sectors) == 0 || sectors[len(sectors)-1] != s) {
			sectors = append(sectors, s)
		}
		// The marks that are being cleared may be gone from now on.
		t.disk[i] &= next[i]
	}
	t.mu.Unlock()
	do := func() error { return t.store(sectors, next) }
	var err error
	switch {
	case len(sectors) == 0:
	case t.access == nil:
		err = do()
	default:
		err = t.access.use(opUpdate, do)
	}
	t.mu.Lock()
	switch {
	case err == nil:
		t.unsure = false
		for i := range next {
			t.disk[i] |= next[i]
		}
	case lacksRoom(err):
		t.unsure = true
		err = fmt.Errorf("replication: write-intent bitmap: %w", err)
	default:
		e := &MetadataError{"write-intent bitmap", err}
		t.err, err = e, e
		if t.lost != nil {
			t.lost.CompareAndSwap(nil, e)
		}
	}
	t.writing = false
	t.ended.Broadcast()
	return err
}

// store writes sectors of the bitmap next, and makes them stable.
func (t *intent) store(sectors []int, next []uint32) error {
	for _, s := range sectors {
		p := make([]byte, 0, SectorSize)
		for _, w := range next[s*intentWords : (s+1)*intentWords] {
			p = binary.LittleEndian.AppendUint32(p, w)
		}
		p = binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
		if err := writeInRoom(t.dev, p, t.base+int64(s)*SectorSize); err != nil {
			return err
		}
	}
	return t.dev.Sync()
}

// settle unmarks the regions for which differs returns false. If there are many, it clears
// them on stable storage too, after before has returned nil.
func (t *intent) settle(differs func(off, n int64) bool, before func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	idle := 0
	for i, w := range t.want {
		for ; w != 0; w &= w - 1 {
			r := int64(i)*32 + int64(bits.TrailingZeros32(w))
			if r >= t.regions || !differs(r*intentRegion, min(intentRegion, t.size-r*intentRegion)) {
				t.want[i] &^= 1 << (r % 32)
			}
		}
		idle += bits.OnesCount32(t.disk[i] &^ t.want[i])
	}
	if idle <= intentActive && !t.unsure || t.writing || t.err != nil {
		return t.err
	}
	t.writing = true // nobody else writes the bitmap meanwhile
	t.mu.Unlock()
	err := before()
	t.mu.Lock()
	t.writing = false
	t.ended.Broadcast()
	if err != nil {
		return err
	}
	return t.write(func(want, _ uint32) uint32 { return want })
}

// marked calls f for each region that is marked on stable storage.
func (t *intent) marked(f func(off, n int64)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, w := range t.disk {
		for ; w != 0; w &= w - 1 {
			if r := int64(i)*32 + int64(bits.TrailingZeros32(w)); r < t.regions {
				f(r*intentRegion, min(intentRegion, t.size-r*intentRegion))
			}
		}
	}
}
