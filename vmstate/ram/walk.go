package ram

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// Kind says what a [Record] carries.
type Kind uint8

// The kinds of records, by the name that String gives.
const (
	KindBlockList    Kind = iota + 1 // "block-list": MEM_SIZE
	KindZero                         // "zero"
	KindPage                         // "page"
	KindXBZRLE                       // "xbzrle"
	KindCompressed                   // "compressed"
	KindMultiFDFlush                 // "multifd-flush"
	KindEOS                          // "eos"
	KindMappedBlock                  // "mapped-block": see [Record.Mapped]
)

var kindNames = [...]string{
	KindBlockList: "block-list", KindZero: "zero", KindPage: "page", KindXBZRLE: "xbzrle",
	KindCompressed: "compressed", KindMultiFDFlush: "multifd-flush", KindEOS: "eos",
	KindMappedBlock: "mapped-block",
}

// String returns the kind's name, or its number.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Record is one record of a RAM section.
type Record struct {
	Kind   Kind
	Stream int64 // where it begins in the stream, in bytes
	Length int64 // of all of it in the stream, in bytes

	// Block and Offset are the page's place, for the kinds that have one.
	// Continue says that the record does not name the block itself. For EOS
	// and multifd-flush, Offset is the address as found, which means nothing.
	Block    string
	Offset   uint64
	Continue bool

	Fill   byte        // of a zero record
	Data   []byte      // the page, XBZRLE delta or zlib stream; valid in the callback only
	Total  uint64      // of a block list: the sum of the lengths
	Blocks []BlockInfo // of a block list

	// PageSize is the length of the page in bytes, where that is not the
	// constant PageSize; otherwise 0.
	PageSize int

	// Mapped is not nil in what [Format].MappedRAM adds: a mapped-block record
	// begins each block, with Block its name and Blocks its entry of the list,
	// and is followed by a page record for each of its pages; the block list
	// comes at the end. Put writes none of them: a [MappedWriter] does.
	Mapped *MappedBlock
}

// pageSize returns the length of a page, in bytes.
func (rec *Record) pageSize() int {
	if rec.PageSize == 0 {
		return PageSize
	}
	return rec.PageSize
}

// Page reports whether the record carries a page, in whatever form.
func (rec *Record) Page() bool { return rec.Kind >= KindZero && rec.Kind <= KindCompressed }

// Put writes the record as it was read, byte for byte. f has to be the format
// that it was read with. The writer's error sticks as usual.
func (rec *Record) Put(w *qemufile.Writer, f Format) {
	word := rec.Offset
	if rec.Continue {
		word |= flagContinue
	}
	switch rec.Kind {
	case KindBlockList:
		if rec.Mapped != nil {
			w.Fail(errors.New("ram: records of mapped-ram are no stream"))
			return
		}
		// A CONTINUE flag has no meaning here, but was in the stream, and
		// stays.
		putBlockList(w, rec.Blocks, rec.Total|word&flagMask, f)
	case KindZero:
		rec.putHead(w, word|flagZero)
		w.PutByte(rec.Fill)
	case KindPage:
		rec.putHead(w, word|flagPage)
		w.Write(rec.Data)
	case KindXBZRLE:
		rec.putHead(w, word|flagXBZRLE)
		w.PutByte(encodingXBZRLE)
		w.PutBE16(uint16(len(rec.Data)))
		w.Write(rec.Data)
	case KindCompressed:
		rec.putHead(w, word|flagCompressed)
		w.PutBE32(uint32(len(rec.Data)))
		w.Write(rec.Data)
	case KindMultiFDFlush:
		w.PutBE64(word | flagMultiFDFlush)
	case KindEOS:
		w.PutBE64(word | flagEOS)
	default:
		w.Fail(fmt.Errorf("ram: record of %v", rec.Kind))
	}
}

func (rec *Record) putHead(w *qemufile.Writer, word uint64) {
	w.PutBE64(word)
	if !rec.Continue {
		w.PutCountedString(rec.Block)
	}
}

// Apply changes page, which is a page long and holds the page as it was, into
// the page that the record describes. It does nothing for a record without a
// page. A delta or compressed page that is corrupt gives [ErrXBZRLE] or
// [ErrCompressed].
func (rec *Record) Apply(page []byte) error {
	page = page[:rec.pageSize()]
	switch rec.Kind {
	case KindZero:
		for i := range page {
			page[i] = rec.Fill
		}
	case KindPage:
		copy(page, rec.Data)
	case KindXBZRLE:
		if err := xbzrle.Decode(page, rec.Data); err != nil {
			return fmt.Errorf("%w: %w", ErrXBZRLE, err)
		}
	case KindCompressed:
		return inflate(page, rec.Data)
	}
	return nil
}

// Walker reads RAM sections record by record, without a guest and in constant
// memory. One Walker belongs to one connection, whose block context and block
// list it keeps, and to one goroutine. The zero value is ready.
type Walker struct {
	// Format says what the block list contains. It may be changed between
	// sections, as the stream tells.
	Format Format

	// PageSize is the size of the target's pages in bytes, a power of two from
	// 256 to 65536. Zero is PageSize, the constant, or with Detect what the
	// stream turns out to have.
	PageSize int

	// Detect lets the walker find out the size of pages if PageSize is 0. It
	// looks ahead in the stream, as far as the reader can, when the first page
	// comes; and again if only zero pages have come and a page contradicts the
	// size found.
	Detect bool

	// For OpenMapped: the offset in the file of what the reader reads first,
	// and a function that gets the bitmaps instead of the pages.
	origin  int64
	bitmaps func(info BlockInfo, m *MappedBlock, words []byte)
	told    uint64 // pages of the blocks of a mapped-ram file so far

	size    int               // of pages as detected; 0: not yet
	certain bool              // a page of contents has proved it
	proof   bool              // a page of contents was read with size
	block   string            // of the record before, if named
	named   bool              // a record has named its block
	blocks  map[string]uint64 // lengths; nil before a list
	rec     Record
}

// Learn takes from a record of the stream what that says of the memory behind it. The
// configuration names capabilities and, on some machines, the size of the target's pages, which
// counts unless PageSize is set; a command says that postcopy may follow. A reader of a stream
// whose machine it does not know calls it with each record, in the Record of a
// [vmstate.Scanner].
func (k *Walker) Learn(rec *vmstate.Record) {
	switch c := &rec.Configuration; {
	case rec.Type == vmstate.Configured:
		k.Format.IgnoreShared = slices.Contains(c.Capabilities, "x-ignore-shared")
		k.Format.MappedRAM = slices.Contains(c.Capabilities, "mapped-ram")
		if bits := c.TargetPageBits; k.PageSize == 0 && bits >= 8 && bits <= 16 {
			k.PageSize = 1 << bits
		}
	case rec.Type == vmstate.CommandRecord && rec.Command.Type == vmstate.CommandPostcopyAdvise:
		k.Format.Postcopy = true
	}
}

// Walk reads one section's body, up to and including EOS, and calls fn for
// each record, EOS too. The record and its Data are valid until fn returns. It
// checks what can be checked without a guest, with the errors of
// [Cache.LoadState]; once a block list was read, also the pages' places against
// it. An error of fn ends the walk and is returned as it is.
func (k *Walker) Walk(r *qemufile.Reader, fn func(*Record) error) error {
	for {
		at := r.Offset()
		k.rec = Record{Stream: at}
		rec := &k.rec
		if k.Detect && k.PageSize == 0 && !k.certain {
			k.settle(r)
		}
		var failed error // of fn
		err := k.read(r, rec)
		if err == nil && rec.Kind == KindBlockList && k.Format.MappedRAM {
			err, failed = k.mapped(r, rec, fn)
		} else if err == nil && rec.Kind == KindBlockList {
			err = k.list(r, rec)
		}
		if failed != nil {
			return failed
		}
		if err != nil {
			e, ok := err.(*Error)
			if !ok {
				e = &Error{Block: rec.Block, Offset: rec.Offset, Err: qemufile.NoEOF(err)}
			}
			e.Op, e.Stream = "walk", at
			return e
		}
		rec.Length = r.Offset() - at
		if err := fn(rec); err != nil {
			return err
		}
		if rec.Kind == KindEOS {
			return nil
		}
	}
}

func (k *Walker) read(r *qemufile.Reader, rec *Record) error {
	word := r.BE64()
	if err := r.Err(); err != nil {
		return err
	}
	rec.Continue = word&flagContinue != 0
	mask := k.mask(word)
	off := word &^ mask
	rec.Offset = off
	if size := k.Size(); size != PageSize {
		rec.PageSize = size
	}
	switch word & mask &^ flagContinue {
	case flagPage:
		rec.Kind = KindPage
		if err := k.place(r, rec); err != nil {
			return err
		}
		rec.Data = r.Next(rec.pageSize())
		k.proof = true
		return r.Err()
	case flagZero:
		rec.Kind = KindZero
		if err := k.place(r, rec); err != nil {
			return err
		}
		rec.Fill = r.Byte()
		return r.Err()
	case flagXBZRLE:
		rec.Kind = KindXBZRLE
		err := k.place(r, rec)
		if err == nil {
			k.proof = true
			rec.Data, err = readDelta(r)
		}
		return err
	case flagCompressed:
		rec.Kind = KindCompressed
		err := k.place(r, rec)
		if err == nil {
			k.proof = true
			rec.Data, err = readCompressed(r)
		}
		return err
	case flagMemSize:
		rec.Kind, rec.Offset, rec.Total, rec.PageSize = KindBlockList, 0, off, 0
		return nil
	case flagMultiFDFlush:
		rec.Kind = KindMultiFDFlush
		return nil
	case flagEOS:
		rec.Kind = KindEOS
		return nil
	}
	return fmt.Errorf("%w: %#x", ErrFlags, word&mask)
}

// place finds the record's block and checks the offset in it.
func (k *Walker) place(r *qemufile.Reader, rec *Record) error {
	if !rec.Continue {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return err
		}
		if string(name) != k.block || !k.named {
			k.block, k.named = string(name), true
		}
	} else if !k.named {
		return ErrNoBlock
	}
	rec.Block = k.block
	if k.blocks == nil {
		return nil
	}
	length, ok := k.blocks[rec.Block]
	if !ok {
		return ErrUnknownBlock
	}
	if rec.Offset >= length {
		return fmt.Errorf("%w: length %#x", ErrOffset, length)
	}
	return nil
}

// list reads the entries of a block list.
func (k *Walker) list(r *qemufile.Reader, rec *Record) error {
	return k.entries(r, rec, func(BlockInfo) error { return nil })
}

// entries reads the entries of a block list and calls each for one after it was
// read.
func (k *Walker) entries(r *qemufile.Reader, rec *Record, each func(BlockInfo) error) error {
	blocks := make(map[string]uint64)
	for left := rec.Total; left > 0; {
		if len(blocks) == MaxBlocks {
			return fmt.Errorf("%w: more than %d blocks", ErrBlockList, MaxBlocks)
		}
		name := r.CountedString()
		if err := r.Err(); err != nil {
			return err
		}
		if _, ok := blocks[name]; ok {
			return &Error{Block: name, Err: fmt.Errorf("%w: listed twice", ErrBlockList)}
		}
		info, err := readBlockInfo(r, k.Format, namesPageSize, left)
		if err != nil {
			return &Error{Block: name, Err: qemufile.NoEOF(err)}
		}
		info.Name = name
		blocks[name] = info.Length
		rec.Blocks = append(rec.Blocks, info)
		left -= info.Length
		if err := each(info); err != nil {
			return err
		}
	}
	k.blocks = blocks
	if rec.Total == 0 {
		k.blocks = nil
	}
	return nil
}
