package replication

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// ChunkSize is the unit, in bytes, of a [Bitmap].
const ChunkSize = 64 << 10

// Bitmap says which chunks of a disk differ, or may differ, from a copy. Its
// methods may be called from any goroutine.
type Bitmap struct {
	bits atomic.Pointer[bitmapBits] // replaced by grow alone
}

// bitmapBits is a Bitmap of a disk of one size.
type bitmapBits struct {
	size  int64
	words []atomic.Uint64
}

// NewBitmap returns a Bitmap of a disk of size bytes with no bit set.
func NewBitmap(size int64) *Bitmap {
	b := new(Bitmap)
	b.bits.Store(newBits(size))
	return b
}

func newBits(size int64) *bitmapBits {
	chunks := (size + ChunkSize - 1) / ChunkSize
	return &bitmapBits{size: size, words: make([]atomic.Uint64, (chunks+63)/64)}
}

// grow makes b a Bitmap of a disk of size bytes, with no bit set in the new part. No bit
// may be set or cleared meanwhile.
func (b *Bitmap) grow(size int64) {
	old, grown := b.bits.Load(), newBits(size)
	for i := range old.words {
		grown.words[i].Store(old.words[i].Load())
	}
	b.bits.Store(grown)
}

// span calls f with the index of each word that [off, off+n) touches, and with the bits of
// that word which it touches.
func (b *Bitmap) span(off, n int64, f func(i int64, mask uint64) bool) {
	if n <= 0 {
		return
	}
	c0, c1 := off/ChunkSize, (off+n-1)/ChunkSize
	for i := c0 / 64; i <= c1/64; i++ {
		mask := ^uint64(0)
		if i == c0/64 {
			mask &= ^uint64(0) << (c0 % 64)
		}
		if i == c1/64 {
			mask &= ^uint64(0) >> (63 - c1%64)
		}
		if !f(i, mask) {
			return
		}
	}
}

// Set sets the bits of the chunks that [off, off+n) touches.
func (b *Bitmap) Set(off, n int64) {
	b.span(off, n, func(i int64, mask uint64) bool {
		if b.bits.Load().words[i].Load()&mask != mask { // a shared cache line is not written without need
			b.bits.Load().words[i].Or(mask)
		}
		return true
	})
}

// Clear clears the bits of the chunks that [off, off+n) touches.
func (b *Bitmap) Clear(off, n int64) {
	b.span(off, n, func(i int64, mask uint64) bool {
		b.bits.Load().words[i].And(^mask)
		return true
	})
}

// Any reports whether a bit of the chunks that [off, off+n) touches is set.
func (b *Bitmap) Any(off, n int64) bool {
	any := false
	b.span(off, n, func(i int64, mask uint64) bool {
		any = b.bits.Load().words[i].Load()&mask != 0
		return !any
	})
	return any
}

// Empty reports whether no bit is set.
func (b *Bitmap) Empty() bool { return !b.Any(0, b.bits.Load().size) }

// Bytes returns the length of the chunks whose bits are set, in bytes.
func (b *Bitmap) Bytes() int64 { return union{b.bits.Load()}.bytes() }

// Or sets the bits that are set in o, a Bitmap of a disk of the same size; that of another size is
// ErrSize.
func (b *Bitmap) Or(o *Bitmap) error {
	if b.bits.Load().size != o.bits.Load().size {
		return fmt.Errorf("%w: bitmaps of disks of %d and %d bytes", ErrSize, b.bits.Load().size, o.bits.Load().size)
	}
	for i := range b.bits.Load().words {
		if w := o.bits.Load().words[i].Load(); w != 0 {
			b.bits.Load().words[i].Or(w)
		}
	}
	return nil
}

// next returns the first run of set bits that begins at or after off, of at
// most max bytes, or n == 0.
func (b *Bitmap) next(off, max int64) (start, n int64) {
	for off < b.bits.Load().size {
		c := off / ChunkSize
		w := b.bits.Load().words[c/64].Load() >> (c % 64)
		if w == 0 {
			off = (c/64 + 1) * 64 * ChunkSize
			continue
		}
		start = (c + int64(bits.TrailingZeros64(w))) * ChunkSize
		for n = 0; n < max && start+n < b.bits.Load().size && b.Any(start+n, 1); {
			n += ChunkSize
		}
		return start, min(n, b.bits.Load().size-start)
	}
	return 0, 0
}

// run returns how much of [off, off+n) from off on has bits that are all set,
// or all clear.
func (b *Bitmap) run(off, n int64) (length int64, set bool) {
	u := union{b.bits.Load()}
	return u.run(off, n)
}

// clearAll clears every bit.
func (b *Bitmap) clearAll() {
	for i := range b.bits.Load().words {
		b.bits.Load().words[i].Store(0)
	}
}

// union is the bits that are set in any of several bitmaps at the moment of each call; it
// has no bits of its own. The first bitmap must be there, the others may be nil; all are
// of one size. They are read in their order, so that a bit which moves from one to a later
// one meanwhile is not missed.
type union [3]*bitmapBits

// word returns the i-th word of the bits.
func (u *union) word(i int64) (w uint64) {
	for _, b := range u {
		if b != nil {
			w |= b.words[i].Load()
		}
	}
	return w
}

// has reports whether the bit of the chunk at off is set.
func (u *union) has(off int64) bool {
	c := off / ChunkSize
	return u.word(c/64)>>(c%64)&1 != 0
}

// bytes does what Bytes of a [Bitmap] does.
func (u union) bytes() int64 {
	chunks := 0
	for i := range u[0].words {
		chunks += bits.OnesCount64(u.word(int64(i)))
	}
	n := int64(chunks) * ChunkSize
	if tail := u[0].size % ChunkSize; tail != 0 && u.has(u[0].size-1) {
		n -= ChunkSize - tail
	}
	return n
}

// extents does what Extents of a [Bitmap] does.
func (u union) extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	if err := checkRange(off, n, u[0].size); err != nil {
		return err
	}
	for end := off + n; off < end; {
		length, set := u.run(off, end-off)
		var flags uint32
		if set {
			flags = BitmapDirty
		}
		if !yield(length, flags) {
			return nil
		}
		off += length
	}
	return nil
}

// run returns how much of [off, off+n) from off on has bits that are all set,
// or all clear.
func (u *union) run(off, n int64) (length int64, set bool) {
	set = u.has(off)
	end := off + n
	next := (off/ChunkSize + 1) * ChunkSize
	for next < end && u.has(next) == set {
		next += ChunkSize
	}
	return min(next, end) - off, set
}
