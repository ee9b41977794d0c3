package ram

import (
	"iter"
	"math/bits"
)

// Bitmap has one bit per page: bit i&63 of word i>>6 stands for page i, the
// layout of KVM_GET_DIRTY_LOG on a little-endian host (KVM api.rst 4.8).
//
// Its methods allocate nothing and check no more than the language does: a
// page beyond the bitmap panics. A Bitmap belongs to one goroutine.
type Bitmap []uint64

// NewBitmap returns an empty bitmap for pages pages.
func NewBitmap(pages int) Bitmap { return make(Bitmap, (pages+63)/64) }

// Set marks page i.
func (b Bitmap) Set(i int) { b[i>>6] |= 1 << (i & 63) }

// Clear unmarks page i.
func (b Bitmap) Clear(i int) { b[i>>6] &^= 1 << (i & 63) }

// Has reports whether page i is marked.
func (b Bitmap) Has(i int) bool { return b[i>>6]>>(i&63)&1 != 0 }

// SetRange marks the pages from lo up to but not including hi.
func (b Bitmap) SetRange(lo, hi int) { b.eachWord(lo, hi, func(w *uint64, mask uint64) { *w |= mask }) }

// ClearRange unmarks the pages from lo up to but not including hi.
func (b Bitmap) ClearRange(lo, hi int) {
	b.eachWord(lo, hi, func(w *uint64, mask uint64) { *w &^= mask })
}

// eachWord calls fn for every word with bits in [lo, hi), with a mask of them.
func (b Bitmap) eachWord(lo, hi int, fn func(w *uint64, mask uint64)) {
	for lo < hi {
		end := min((lo|63)+1, hi)
		mask := ^uint64(0) << (lo & 63)
		if end&63 != 0 {
			mask &= 1<<(end&63) - 1
		}
		fn(&b[lo>>6], mask)
		lo = end
	}
}

// Or marks the pages that other marks; it must not be longer than b.
func (b Bitmap) Or(other Bitmap) {
	for i, w := range other {
		b[i] |= w
	}
}

// Count returns the number of marked pages.
func (b Bitmap) Count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// Next returns the first marked page from i on, or -1.
func (b Bitmap) Next(i int) int {
	wi := i >> 6
	if wi >= len(b) {
		return -1
	}
	if w := b[wi] >> (i & 63); w != 0 {
		return i + bits.TrailingZeros64(w)
	}
	for wi++; wi < len(b); wi++ {
		if w := b[wi]; w != 0 {
			return wi<<6 | bits.TrailingZeros64(w)
		}
	}
	return -1
}

// All yields the marked pages in ascending order. The loop may clear the page
// it is at; other changes are seen from the next word (64 pages) on.
func (b Bitmap) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		for wi, w := range b {
			for ; w != 0; w &= w - 1 {
				if !yield(wi<<6 | bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}
