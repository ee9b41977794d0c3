package ram

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// BlockInfo is one entry of the block list, the MEM_SIZE record that begins
// the stream of memory.
type BlockInfo struct {
	Name     string
	Length   uint64 // bytes in use
	PageSize uint64 // of the memory behind it; 0 if the list does not say ([Format].Postcopy)
	GPA      uint64 // with [Format].IgnoreShared
}

// MaxBlocks bounds the blocks of a list that is read without a guest to compare it
// with. QEMU machines have a few dozen. A stream may have several lists: who keeps the
// blocks of all of them bounds them too.
const MaxBlocks = 1 << 12

// putBlockList writes the MEM_SIZE record of blocks.
func putBlockList(w *qemufile.Writer, blocks []BlockInfo, total uint64, f Format) {
	w.PutBE64(total | flagMemSize)
	for i := range blocks {
		b := &blocks[i]
		w.PutCountedString(b.Name)
		w.PutBE64(b.Length)
		if f.Postcopy && b.PageSize != 0 {
			w.PutBE64(b.PageSize)
		}
		if f.IgnoreShared {
			w.PutBE64(b.GPA)
		}
	}
}

// readBlockInfo reads one entry after its name; pageSize is asked, if postcopy
// was advised, whether a page size comes next. What is left of the list's total
// is checked here: QEMU subtracts and goes on reading page data as names when
// the sum does not come out at 0.
func readBlockInfo(r *qemufile.Reader, f Format, pageSize func(*qemufile.Reader, Format) bool, left uint64) (b BlockInfo, err error) {
	b.Length = r.BE64()
	large := f.Postcopy && pageSize(r, f)
	if large {
		b.PageSize = r.BE64()
	}
	if f.IgnoreShared {
		b.GPA = r.BE64()
	}
	if err := r.Err(); err != nil {
		return b, err
	}
	if large && b.PageSize == 0 {
		return b, fmt.Errorf("%w: page size 0", ErrBlockList)
	}
	if b.Length > left {
		return b, fmt.Errorf("%w: length %#x, of the total %#x is left", ErrBlockList, b.Length, left)
	}
	return b, nil
}

// namesPageSize tells from what comes next whether an entry says its page size,
// for a reader who does not know the guest. A page size is a multiple of 4096
// below 2^56, as an address is. What can follow an entry is neither: a name begins
// with its length, which is not 0, and a record has flags in its low bits.
func namesPageSize(r *qemufile.Reader, f Format) bool {
	at := 0
	if f.IgnoreShared {
		at = 8 // either it is the size, or the address is
	}
	p := r.Peek(at + 8)
	if len(p) < at+8 {
		return false
	}
	v := binary.BigEndian.Uint64(p[at:])
	return v>>56 == 0 && v&flagMask == 0 && (at > 0 || v != 0)
}
