package ram

import (
	"bytes"
	"encoding/binary"
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
