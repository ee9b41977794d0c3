package ram

import (
	"encoding/binary"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
)

// Sizes that a target's pages have in some QEMU: AVR 256, ARM 1024 and up, most
// 4096, Alpha and SPARC 8192, what is configured for ARM and MIPS up to 65536.
const (
	minPageSize = 256
	maxPageSize = 64 << 10
)

// Size returns the size of the pages that the walker reads now, in bytes.
func (k *Walker) Size() int {
	switch {
	case k.PageSize != 0:
		return k.PageSize
	case k.size != 0:
		return k.size
	}
	return PageSize
}

// Certain reports whether Size is more than a likely guess: told, or proved by a
// page's contents.
func (k *Walker) Certain() bool { return k.PageSize != 0 || !k.Detect || k.certain }

// mask returns the bits of a record's first word that are flags. As long as the
// size of pages is unknown it returns the bits that are flags for every size: a
// record before the first page is a block list, or has no address.
func (k *Walker) mask(word uint64) uint64 {
	if k.Detect && k.PageSize == 0 && k.size == 0 && word != flagMultiFDFlush {
		return minPageSize - 1
	}
	return uint64(k.Size()) - 1
}

// settle finds out about the size of pages before a record is read.
func (k *Walker) settle(r *qemufile.Reader) {
	head := r.Peek(8)
	if len(head) < 8 {
		return
	}
	word := binary.BigEndian.Uint64(head)
	if k.size == 0 {
		if flags := word & (minPageSize - 1) &^ flagContinue; flags == flagMemSize || flags == flagEOS || word == flagMultiFDFlush {
			return
		}
		k.detect(r)
		return
	}
	switch ok := k.valid(word, k.size); {
	case ok && k.proof:
		k.certain = true
	case !ok && !k.proof:
		k.detect(r)
	}
}

// valid reports whether a first word of a record can be one with pages of a size.
func (k *Walker) valid(word uint64, size int) bool {
	off := word &^ uint64(size-1)
	switch word & uint64(size-1) &^ flagContinue {
	case flagPage, flagZero, flagXBZRLE, flagCompressed, flagMemSize:
		return off>>56 == 0
	case flagEOS:
		return off == 0
	case flagMultiFDFlush:
		return off == 0 && size > flagMultiFDFlush
	}
	return false
}

// detect looks at the bytes that come next, and chooses a size of pages that
// they do not contradict.
func (k *Walker) detect(r *qemufile.Reader) {
	p := r.Peek(1 << 20) // as much as the reader can
	var possible []int
	step := uint64(0) // between neighbours, as the smallest size sees them
	for size := minPageSize; size <= maxPageSize; size *= 2 {
		t := sizeTrial{k: k, size: size, p: p}
		if !t.run() {
			continue
		}
		if len(possible) == 0 {
			step = t.step
		}
		possible = append(possible, size)
	}
	// One that agrees with the distance of neighbours is the one; a first round
	// has every page. Without neighbours it is the usual one, if that is possible.
	k.size = PageSize
	if len(possible) > 0 && !slices.Contains(possible, PageSize) {
		k.size = possible[len(possible)-1]
	}
	if i := slices.Index(possible, int(min(step, maxPageSize))); i >= 0 {
		k.size = possible[i]
	}
}

// sizeTrial is a walk ahead with one size of pages.
type sizeTrial struct {
	k    *Walker
	size int
	p    []byte // what is left of the bytes ahead

	block string // of the record before
	last  uint64 // offset of the page before, in block
	begun bool   // last is the offset of a page
	step  uint64 // smallest distance of two pages one after the other; 0: none seen
}

// run reports whether there is nothing in p that contradicts the size.
func (t *sizeTrial) run() bool {
	t.block = t.k.block
	for len(t.p) >= 8 {
		word := binary.BigEndian.Uint64(t.p)
		if !t.k.valid(word, t.size) {
			return false
		}
		t.p = t.p[8:]
		flags := word & uint64(t.size-1)
		off := word &^ uint64(t.size-1)
		switch flags &^ flagContinue {
		case flagEOS:
			return true // what follows is another section
		case flagMultiFDFlush:
			continue
		case flagMemSize:
			return true
		}
		if flags&flagContinue == 0 {
			if len(t.p) == 0 || len(t.p) < 1+int(t.p[0]) {
				return true
			}
			name := string(t.p[1 : 1+int(t.p[0])])
			t.p = t.p[1+len(name):]
			t.block, t.begun = name, false
		}
		if !t.inside(off) {
			return false
		}
		t.neighbour(off)
		n := t.length(flags &^ flagContinue)
		if n < 0 {
			return false
		}
		t.p = t.p[min(n, len(t.p)):]
	}
	return true
}

// inside reports whether a page is in its block, as far as blocks are known.
func (t *sizeTrial) inside(off uint64) bool {
	if t.k.blocks == nil {
		return t.block != ""
	}
	length, ok := t.k.blocks[t.block]
	return ok && off < length
}

func (t *sizeTrial) neighbour(off uint64) {
	if t.begun && off > t.last && (t.step == 0 || off-t.last < t.step) {
		t.step = off - t.last
	}
	t.last, t.begun = off, true
}

// length returns how long the rest of a record is, or -1 where it cannot be.
func (t *sizeTrial) length(flags uint64) int {
	switch flags {
	case flagPage:
		return t.size
	case flagZero:
		return 1
	case flagXBZRLE:
		if len(t.p) < 3 {
			return len(t.p)
		}
		n := int(binary.BigEndian.Uint16(t.p[1:]))
		if t.p[0] != encodingXBZRLE || n > t.size {
			return -1
		}
		return 3 + n
	default: // compressed
		if len(t.p) < 4 {
			return len(t.p)
		}
		n := binary.BigEndian.Uint32(t.p)
		if n > uint32(t.size)+1024 {
			return -1
		}
		return 4 + int(n)
	}
}
