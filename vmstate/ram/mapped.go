package ram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/gocolo/lockstep/qemufile"
)

// A MappedBlock says where the pages of a block are in a file of the capability
// mapped-ram (MappedRamHeader in migration/ram.c of QEMU 9.0 and later).
type MappedBlock struct {
	PageSize uint64 // of the target, in bytes
	// Bitmap is the offset in the file of a bitmap with a bit for each page that
	// the file has, in 64-bit words of the host's byte order (little endian here);
	// a page without a bit is zeros. Pages is the offset in the file of page 0; every
	// other page lies behind it, at its own offset in the block.
	Bitmap, Pages uint64
}

const (
	mappedVersion = 1
	mappedHeader  = 4 + 3*8
	mappedAlign   = 1 << 20 // of Pages (MAPPED_RAM_FILE_OFFSET_ALIGNMENT)
	// maxMapped bounds the length of a block whose bitmap is read: 1 TiB of
	// pages of 4096 bytes.
	maxMapped = 1 << 28 // pages
	// maxMappedAll bounds the blocks of a file together, whose bitmaps a MappedWriter keeps:
	// 256 MiB, for 8 TiB of such pages. A sparse file may say anything.
	maxMappedAll = 1 << 31 // pages
)

// ErrMapped means that the header of a block in a mapped-ram file has an unknown version or
// page size, that the block is not whole pages, that bitmap and pages overlap or lie before
// what was read already, or that blocks have more pages than can be told of: 1 TiB of pages
// of 4096 bytes in one block, and 8 TiB in all of a file.
var ErrMapped = errors.New("bad mapped-ram block")

// mapped reads a block list with mapped-ram: behind each entry are the block's
// header, bitmap and pages. The second result is an error of fn.
func (k *Walker) mapped(r *qemufile.Reader, rec *Record, fn func(*Record) error) (err, failed error) {
	list := *rec
	err = k.entries(r, &list, func(info BlockInfo) error {
		m, err := k.readMapped(r, info)
		if err == nil {
			failed = fn(&Record{Kind: KindMappedBlock, Stream: rec.Stream, Block: info.Name, Blocks: []BlockInfo{info}, Mapped: m})
			if failed != nil {
				return failed
			}
			err, failed = k.mappedPages(r, info, m, fn)
		}
		if err != nil && failed == nil {
			return &Error{Block: info.Name, Err: qemufile.NoEOF(err)}
		}
		return failed
	})
	if failed != nil {
		return nil, failed
	}
	*rec = list
	rec.Mapped = new(MappedBlock)
	return err, nil
}

// offset returns the offset in the file at which r stands.
func (k *Walker) offset(r *qemufile.Reader) uint64 { return uint64(k.origin + r.Offset()) }

// readMapped reads the header of a block.
func (k *Walker) readMapped(r *qemufile.Reader, info BlockInfo) (*MappedBlock, error) {
	version := r.BE32()
	m := &MappedBlock{PageSize: r.BE64(), Bitmap: r.BE64(), Pages: r.BE64()}
	if err := r.Err(); err != nil {
		return nil, err
	}
	at := k.offset(r)
	switch {
	case version != mappedVersion:
		return nil, fmt.Errorf("%w: version %d", ErrMapped, version)
	case m.PageSize < minPageSize || m.PageSize > maxPageSize || m.PageSize&(m.PageSize-1) != 0:
		return nil, fmt.Errorf("%w: pages of %d bytes", ErrMapped, m.PageSize)
	case info.Length%m.PageSize != 0:
		return nil, fmt.Errorf("%w: %d bytes are no multiple of a page", ErrMapped, info.Length)
	case info.Length/m.PageSize > min(maxMapped, maxMappedAll-k.told):
		return nil, fmt.Errorf("%w: %d bytes are more than can be told of", ErrMapped, info.Length)
	case m.Bitmap < at || info.Length > 1<<62 || m.Bitmap > 1<<62 || m.Pages < m.Bitmap+m.bitmapLength(info.Length) || m.Pages > 1<<62:
		return nil, fmt.Errorf("%w: bitmap at %#x, pages at %#x, header up to %#x", ErrMapped, m.Bitmap, m.Pages, at)
	}
	k.told += info.Length / m.PageSize
	return m, nil
}

// mappedEntry reports whether a record of a mapped-ram file is the entry of a block. A record
// that brings a page is an error, since each page of such a file has its place.
func mappedEntry(rec *Record) (bool, error) {
	switch rec.Kind {
	case KindMappedBlock:
		return true, nil
	case KindBlockList, KindMultiFDFlush, KindEOS:
		return false, nil
	}
	return false, &Error{Op: "map", Block: rec.Block, Offset: rec.Offset, Stream: rec.Stream, Err: fmt.Errorf("%w: %v beside the pages of a file", ErrFlags, rec.Kind)}
}

// bitmapLength returns the length of a block's bitmap, in bytes.
func (m *MappedBlock) bitmapLength(length uint64) uint64 {
	return (length/m.PageSize + 63) / 64 * 8
}

// mappedPages reads the pages that a block has, and leaves r behind them.
func (k *Walker) mappedPages(r *qemufile.Reader, info BlockInfo, m *MappedBlock, fn func(*Record) error) (err, failed error) {
	size := m.bitmapLength(info.Length)
	r.Skip(m.Bitmap - k.offset(r))
	bitmap := r.Bytes(size, size)
	if k.bitmaps != nil && r.Err() == nil {
		k.bitmaps(info, m, bitmap)
		bitmap = nil
	}
	for i := 0; i < len(bitmap); i += 8 {
		for word := binary.LittleEndian.Uint64(bitmap[i:]); word != 0; word &= word - 1 {
			off := (uint64(i)*8 + uint64(bits.TrailingZeros64(word))) * m.PageSize
			if off >= info.Length {
				return fmt.Errorf("%w: %#x in the bitmap", ErrOffset, off), nil
			}
			r.Skip(m.Pages + off - k.offset(r))
			k.rec = Record{Kind: KindPage, Stream: r.Offset(), Length: int64(m.PageSize), Block: info.Name, Offset: off, Mapped: m}
			if m.PageSize != PageSize {
				k.rec.PageSize = int(m.PageSize)
			}
			if k.rec.Data = r.Next(int(m.PageSize)); r.Err() != nil {
				return r.Err(), nil
			}
			if failed := fn(&k.rec); failed != nil {
				return nil, failed
			}
		}
	}
	if err := r.Err(); err != nil {
		return err, nil
	}
	r.Skip(m.Pages + info.Length - k.offset(r))
	return r.Err(), nil
}
