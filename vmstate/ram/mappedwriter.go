package ram

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/qemufile"
)

// MappedFile is the file in which a [MappedWriter] keeps memory: an *os.File, say.
// Bytes that were never written have to read as zeros, or as the end of the file.
type MappedFile interface {
	io.ReaderAt
	io.WriterAt
}

// MappedWriter writes a guest's memory to fixed places of a file, as QEMU's
// capability mapped-ram does (9.0 and later). That memory is the body of the ram
// section's START: the caller writes the headers of the stream before it and goes on
// at [MappedWriter.End]; the memory sections that follow there have no pages.
//
//	vmstate.PutFileHeader(w)
//	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: m, Capabilities: []string{"mapped-ram"}})
//	vmstate.Header{Type: vmstate.SectionStart, ID: id, Name: ram.SectionName, Version: ram.Version}.Put(w)
//	… flush, and then with the file's offset:
//	m, err := ram.CreateMapped(file, offset, blocks)
//	m.WritePage("pc.ram", 0, page)
//	m.Commit()
//	… at m.End(): the section's footer, devices, EOF and description
//
// A page that comes again is written in place, so that the file is never longer
// than the guest, and a page of zeros takes no room. Commit makes the pages written
// so far part of the file: a crash before the first Commit loses them all. A crash
// while a page is written over leaves that page torn, so a caller who needs the
// earlier state keeps it in another file. [OpenMapped] goes on with a file that was
// committed.
//
// It belongs to one goroutine.
type MappedWriter struct {
	f      MappedFile
	at     int64 // of the block list
	end    int64
	blocks []mappedBlock
	index  map[string]int
	last   int
}

// mappedBlock is a block of a MappedWriter.
type mappedBlock struct {
	BlockInfo
	MappedBlock
	entry  int64 // of its entry in the list
	has    []uint64
	change bool // has differs from what the file says
}

// CreateMapped lays out blocks in the file f from offset at on, and writes what will
// not change: the block list and the headers. Lengths have to be multiples of PageSize.
// It ignores what the file has there already, but only a new file becomes sparse.
// Errors are [*Error] with [ErrBlockList], or those of f.
func CreateMapped(f MappedFile, at int64, blocks []BlockInfo) (*MappedWriter, error) {
	m := &MappedWriter{f: f, at: at, index: make(map[string]int)}
	pos := at + 8
	pages := uint64(0)
	for _, info := range blocks {
		if pages += min(info.Length/PageSize, maxMappedAll); pages > maxMappedAll {
			return nil, &Error{Op: "map", Block: info.Name, Stream: -1, Err: fmt.Errorf("%w: more than %d pages in all", ErrBlockList, uint64(maxMappedAll))}
		}
	}
	for _, info := range blocks {
		_, twice := m.index[info.Name]
		if len(info.Name) == 0 || len(info.Name) > 255 || twice || info.Length%PageSize != 0 || info.Length/PageSize > maxMapped || len(blocks) > MaxBlocks {
			return nil, &Error{Op: "map", Block: info.Name, Stream: -1, Err: fmt.Errorf("%w: %d bytes", ErrBlockList, info.Length)}
		}
		b := mappedBlock{BlockInfo: BlockInfo{Name: info.Name, Length: info.Length}, entry: pos}
		b.MappedBlock.PageSize = PageSize
		b.Bitmap = uint64(pos) + 1 + uint64(len(info.Name)) + 8 + mappedHeader
		b.Pages = (b.Bitmap + b.bitmapLength(info.Length) + mappedAlign - 1) &^ (mappedAlign - 1)
		b.has = make([]uint64, b.bitmapLength(info.Length)/8)
		b.change = true
		m.index[info.Name] = len(m.blocks)
		m.blocks = append(m.blocks, b)
		pos = int64(b.Pages + b.Length)
	}
	m.end = pos + 8
	if err := m.layOut(); err != nil {
		return nil, err
	}
	return m, nil
}

// layOut writes list and headers.
func (m *MappedWriter) layOut() error {
	total := uint64(0)
	for i := range m.blocks {
		total += m.blocks[i].Length
	}
	if err := m.write(binary.BigEndian.AppendUint64(nil, total|flagMemSize), m.at); err != nil {
		return err
	}
	for i := range m.blocks {
		b := &m.blocks[i]
		p := append([]byte{byte(len(b.Name))}, b.Name...)
		p = binary.BigEndian.AppendUint64(p, b.Length)
		p = binary.BigEndian.AppendUint32(p, mappedVersion)
		p = binary.BigEndian.AppendUint64(p, b.MappedBlock.PageSize)
		p = binary.BigEndian.AppendUint64(p, b.Bitmap)
		p = binary.BigEndian.AppendUint64(p, b.Pages)
		if err := m.write(p, b.entry); err != nil {
			return err
		}
	}
	return m.write(binary.BigEndian.AppendUint64(nil, flagEOS), m.end-8)
}

func (m *MappedWriter) write(p []byte, at int64) error {
	if _, err := m.f.WriteAt(p, at); err != nil {
		return &Error{Op: "map", Stream: at, Err: err}
	}
	return nil
}

// OpenMapped goes on with a file that CreateMapped began at the same offset and that was
// committed, or that a QEMU wrote. It has the pages of the last Commit. Errors are [*Error]:
// those of [Walker] with mapped-ram, and those of f; and [ErrBlockList] for a block that is
// listed twice, [ErrMapped] for pages of another size than PageSize, [ErrFlags] for a page that
// is not at its fixed place, where a page written later would not replace it.
func OpenMapped(f MappedFile, at int64) (*MappedWriter, error) {
	m := &MappedWriter{f: f, at: at, index: make(map[string]int)}
	r := qemufile.NewReader(io.NewSectionReader(f, at, 1<<62))
	k := Walker{Format: Format{MappedRAM: true}, origin: at}
	k.bitmaps = func(info BlockInfo, place *MappedBlock, words []byte) {
		b := mappedBlock{BlockInfo: info, MappedBlock: *place, has: make([]uint64, len(words)/8)}
		for i := range b.has {
			b.has[i] = binary.LittleEndian.Uint64(words[8*i:])
		}
		m.index[b.Name] = len(m.blocks)
		m.blocks = append(m.blocks, b)
	}
	err := k.Walk(r, func(rec *Record) error {
		if is, err := mappedEntry(rec); !is {
			return err
		}
		_, twice := m.index[rec.Block] // there may be several lists
		switch {
		case twice:
			return &Error{Op: "map", Block: rec.Block, Stream: rec.Stream, Err: fmt.Errorf("%w: listed twice", ErrBlockList)}
		case rec.Mapped.PageSize != PageSize:
			return &Error{Op: "map", Block: rec.Block, Stream: rec.Stream, Err: fmt.Errorf("%w: pages of %d bytes", ErrMapped, rec.Mapped.PageSize)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range m.blocks {
		b := &m.blocks[i]
		if past := Bitmap(b.has).Next(int(b.Length / PageSize)); past >= 0 {
			return nil, &Error{Op: "map", Block: b.Name, Offset: uint64(past) * PageSize, Stream: at, Err: fmt.Errorf("%w: it is in the bitmap", ErrOffset)}
		}
	}
	m.end = at + r.Offset()
	return m, nil
}

// End returns the offset in the file at which the caller goes on with the stream: the
// footer of the START section comes there.
func (m *MappedWriter) End() int64 { return m.end }

// Blocks returns the blocks and the places of each in the file, in the order of the list.
func (m *MappedWriter) Blocks() (blocks []BlockInfo, places []MappedBlock) {
	for i := range m.blocks {
		blocks = append(blocks, m.blocks[i].BlockInfo)
		places = append(places, m.blocks[i].MappedBlock)
	}
	return blocks, places
}

// WritePage writes a page, PageSize bytes, to its place. A page of zeros is not
// written: its bit in the bitmap is cleared instead. WritePage allocates nothing. An error is an
// [*Error] with [ErrUnknownBlock], [ErrOffset] or what the file has said.
func (m *MappedWriter) WritePage(block string, offset uint64, page []byte) error {
	return m.WritePages(block, offset, page[:PageSize])
}

// WritePages writes all pages of p, one behind the other, as WritePage would. It writes each
// run of pages that are not zeros with one call to the file.
func (m *MappedWriter) WritePages(block string, offset uint64, p []byte) error {
	if m.last >= len(m.blocks) || m.blocks[m.last].Name != block {
		i, ok := m.index[block]
		if !ok {
			return &Error{Op: "map", Block: block, Offset: offset, Stream: -1, Err: ErrUnknownBlock}
		}
		m.last = i
	}
	b := &m.blocks[m.last]
	if offset%PageSize != 0 || offset > b.Length || len(p)%PageSize != 0 || uint64(len(p)) > b.Length-offset || len(p) == 0 {
		return &Error{Op: "map", Block: block, Offset: offset, Stream: -1, Err: ErrOffset}
	}
	for begin := 0; begin < len(p); {
		end := begin
		for end < len(p) && !isZero(p[end:end+PageSize]) {
			end += PageSize
		}
		if end > begin {
			at := offset + uint64(begin)
			if _, err := m.f.WriteAt(p[begin:end], int64(b.Pages+at)); err != nil {
				return &Error{Op: "map", Block: block, Offset: at, Stream: int64(b.Pages + at), Err: err}
			}
		}
		for ; begin < end; begin += PageSize {
			b.mark(offset+uint64(begin), true)
		}
		if begin < len(p) {
			b.mark(offset+uint64(begin), false)
			begin += PageSize
		}
	}
	return nil
}

// mark records whether the file has a page.
func (b *mappedBlock) mark(offset uint64, has bool) {
	i := offset / PageSize
	word, bit := &b.has[i/64], uint64(1)<<(i%64)
	if *word&bit != 0 != has {
		*word ^= bit
		b.change = true
	}
}

// Commit writes the bitmaps, which say what pages the file has. It does not sync the
// file: where a crash of the host matters, the caller syncs before and after.
func (m *MappedWriter) Commit() error {
	for i := range m.blocks {
		b := &m.blocks[i]
		if !b.change {
			continue
		}
		p := make([]byte, 8*len(b.has))
		for j, word := range b.has {
			binary.LittleEndian.PutUint64(p[8*j:], word)
		}
		if err := m.write(p, int64(b.Bitmap)); err != nil {
			return err
		}
		b.change = false
	}
	return nil
}
