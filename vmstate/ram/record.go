package ram

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// The live section of guest memory as QEMU registers it (migration/ram.c).
const (
	SectionName = "ram" // vmstate.Entry.Name
	Version     = 4     // vmstate.Entry.Version and MinVersion
)

// Flags of a record: the low bits of its first word, whose other bits are the
// page's offset in its block (RAM_SAVE_FLAG_* in migration/ram.c).
const (
	flagFull         = 0x001 // obsolete
	flagZero         = 0x002 // [block] fill byte
	flagMemSize      = 0x004 // total length instead of an offset; block list
	flagPage         = 0x008 // [block] the page
	flagEOS          = 0x010 // end of the section's records
	flagContinue     = 0x020 // no block name: the one of the record before
	flagXBZRLE       = 0x040 // [block] encoding byte, be16 length, delta
	flagHook         = 0x080 // RDMA only
	flagCompressed   = 0x100 // [block] be32 length, zlib stream of the page
	flagMultiFDFlush = 0x200 // wait for the multifd channels; QEMU 8.1 and later

	flagMask = PageSize - 1
)

// encodingXBZRLE is the only value of an XBZRLE record's encoding byte
// (ENCODING_FLAG_XBZRLE).
const encodingXBZRLE = 1

// maxRecord is the longest record of one page that a Saver writes: first word,
// block, the three bytes of an XBZRLE record, contents.
const maxRecord = 8 + 1 + 255 + 3 + PageSize

// isZero reports whether a page holds only zeros. A page that does not is told
// from its first bytes as a rule: the comparison of the page with itself one
// word on stops where it first differs.
func isZero(page []byte) bool {
	page = page[:PageSize]
	return binary.NativeEndian.Uint64(page) == 0 && bytes.Equal(page[:PageSize-8], page[8:])
}

// zeroHeads knows which dirty pages begin with zeros, 64 pages at a time. Most
// pages are told from a zero page by their first word, and that is nowhere near
// the processor: reading the words of many pages together lets it wait for all
// of them at once, and not for each. The zero value knows nothing yet.
type zeroHeads struct {
	block *saverBlock
	word  int    // of the dirty bitmap
	zero  uint64 // of the pages in word, those that begin with zeros
}

// has reports whether page i of b, which is dirty, begins with zeros.
func (h *zeroHeads) has(b *saverBlock, i int) bool {
	if h.block != b || h.word != i>>6 {
		h.block, h.word, h.zero = b, i>>6, 0
		for m := b.dirty[h.word]; m != 0; m &= m - 1 {
			bit := bits.TrailingZeros64(m)
			head := binary.NativeEndian.Uint64(b.mem[(h.word<<6|bit)*PageSize:])
			h.zero |= (^(head | -head) >> 63) << bit // 1 where head is 0
		}
	}
	return h.zero>>(i&63)&1 != 0
}
