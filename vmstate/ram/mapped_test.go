package ram

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// mappedPages reads a file's memory, as it is from an offset on.
func mappedPages(t testing.TB, f *os.File, at int64) map[string][]byte {
	t.Helper()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	r := qemufile.NewReader(f)
	r.Skip(uint64(at))
	k := Walker{Format: Format{MappedRAM: true}}
	got := make(map[string][]byte)
	err := k.Walk(r, func(rec *Record) error {
		switch rec.Kind {
		case KindMappedBlock:
			got[rec.Block] = make([]byte, rec.Blocks[0].Length)
		case KindPage:
			copy(got[rec.Block][rec.Offset:], rec.Data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func mappedFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "mapped"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAMappedFileIsWrittenInPlaceAndGoneOnWith(t *testing.T) {
	f := mappedFile(t)
	const at = 77
	blocks := []BlockInfo{{Name: "pc.ram", Length: 200 * PageSize}, {Name: "empty"}, {Name: "pc.rom", Length: PageSize}}
	m, err := CreateMapped(f, at, blocks)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"pc.ram": make([]byte, 200*PageSize), "empty": {}, "pc.rom": make([]byte, PageSize)}
	write := func(block string, i int, p []byte) {
		t.Helper()
		if err := m.WritePage(block, uint64(i)*PageSize, p); err != nil {
			t.Fatal(err)
		}
		copy(want[block][i*PageSize:], p)
	}
	check := func(why string) {
		t.Helper()
		if err := m.Commit(); err != nil {
			t.Fatal(err)
		}
		got := mappedPages(t, f, at)
		for name, p := range want {
			if !bytes.Equal(got[name], p) {
				t.Errorf("%s: %s is not what was written", why, name)
			}
		}
	}
	write("pc.ram", 0, page(1))
	write("pc.ram", 199, page(2))
	write("pc.rom", 0, page(3))
	check("written")
	end := m.End()
	write("pc.ram", 0, page(4))
	write("pc.ram", 100, page(5))
	write("pc.ram", 199, page(0))
	check("written again")
	st, err := f.Stat()
	if err != nil || m.End() != end || st.Size() > end {
		t.Errorf("%d bytes after two rounds, %d after one; %v", st.Size(), end, err)
	}
	if m, err = OpenMapped(f, at); err != nil || m.End() != end {
		t.Fatalf("opened again: %v, ends at %d", err, m.End())
	}
	write("pc.ram", 7, page(6))
	check("gone on with")
	if list, places := m.Blocks(); len(list) != 3 || list[2].Name != "pc.rom" || places[0].Pages%mappedAlign != 0 {
		t.Errorf("blocks %+v %+v", list, places)
	}
	// What was not committed does not count.
	write("pc.ram", 8, page(7))
	clear(want["pc.ram"][8*PageSize : 9*PageSize])
	if got := mappedPages(t, f, at); !bytes.Equal(got["pc.ram"], want["pc.ram"]) {
		t.Error("a page counts before it is committed")
	}
	if n := testing.AllocsPerRun(100, func() { write("pc.ram", 9, page(8)[:PageSize]) }); n > 1 { // the page of the test
		t.Errorf("%v allocations", n)
	}
}

func TestMappedRefuses(t *testing.T) {
	for why, blocks := range map[string][]BlockInfo{
		"no name":     {{Length: PageSize}},
		"twice":       {{Name: "a"}, {Name: "a"}},
		"half a page": {{Name: "a", Length: 100}},
		"too much":    {{Name: "a", Length: (maxMapped + 1) * PageSize}},
		"too much in all": {
			{Name: "a", Length: maxMapped * PageSize}, {Name: "b", Length: maxMapped * PageSize}, {Name: "c", Length: maxMapped * PageSize},
			{Name: "d", Length: maxMapped * PageSize}, {Name: "e", Length: maxMapped * PageSize}, {Name: "f", Length: maxMapped * PageSize},
			{Name: "g", Length: maxMapped * PageSize}, {Name: "h", Length: maxMapped * PageSize}, {Name: "i", Length: PageSize},
		},
		"a name beyond": {{Name: string(make([]byte, 256))}},
	} {
		if _, err := CreateMapped(mappedFile(t), 0, blocks); !errors.Is(err, ErrBlockList) {
			t.Errorf("%s: %v", why, err)
		}
	}
	f := mappedFile(t)
	m, err := CreateMapped(f, 0, []BlockInfo{{Name: "a", Length: PageSize}})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{m.WritePage("a", PageSize, page(1)), m.WritePage("a", 1, page(1))} {
		if !errors.Is(err, ErrOffset) {
			t.Errorf("a page elsewhere: %v", err)
		}
	}
	if err := m.WritePage("b", 0, page(1)); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("another block: %v", err)
	}
	if err := m.Commit(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := m.WritePage("a", 0, page(1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file that is gone: %v", err)
	}
	// Headers that lie. The entry begins at 8: name, length, and from 18 on version,
	// page size, bitmap and pages.
	for why, x := range map[string]struct {
		at   int
		b    byte
		want error
	}{
		"another version":      {21, 2, ErrMapped},
		"a page size of 3":     {29, 3, ErrMapped},
		"a bitmap before it":   {37, 0, ErrMapped},
		"a bitmap far away":    {30, 0x7f, ErrMapped},
		"pages before it":      {43, 0, ErrMapped},
		"pages in the sky":     {38, 0x7f, ErrMapped},
		"a length beyond all":  {10, 0x7f, ErrBlockList},
		"a page that is not":   {46, 0xff, ErrOffset},
		"pages behind the end": {43, 0x20, io.ErrUnexpectedEOF},
	} {
		p := bytes.Clone(whole)
		p[x.at] = x.b
		k := Walker{Format: Format{MappedRAM: true}}
		err := k.Walk(reader(p), func(*Record) error { return nil })
		var e *Error
		if !errors.Is(err, x.want) || !errors.As(err, &e) {
			t.Errorf("%s: %v", why, err)
		}
	}
	for n := range 60 {
		k := Walker{Format: Format{MappedRAM: true}}
		if err := k.Walk(reader(whole[:n]), func(*Record) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	w := qemufile.NewWriter(io.Discard)
	(&Record{Kind: KindBlockList, Mapped: new(MappedBlock)}).Put(w, Format{})
	if w.Err() == nil {
		t.Error("records of a mapped file become a stream")
	}
}

// A writer that goes on with a file changes pages at their fixed places only. What the file says
// elsewhere, or of a page that no block has, would count beside that.
func TestAWriterGoesOnWithNoFileThatSaysTwoThings(t *testing.T) {
	pageRecord := func(w *qemufile.Writer) {
		w.PutBE64(PageSize | flagPage)
		w.PutCountedString("ram")
		w.Write(page(5))
	}
	for why, test := range map[string]struct {
		more   func(w *qemufile.Writer)
		blocks []string
		want   error
	}{
		"blocks in two lists":  {nil, []string{"ram", "rom"}, nil},
		"a block in two lists": {nil, []string{"ram", "rom", "ram"}, ErrBlockList},
		"a page elsewhere":     {pageRecord, []string{"ram"}, ErrFlags},
	} {
		m, err := OpenMapped(lists(t, 3*PageSize, test.more, test.blocks...), 0)
		var at *Error
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || err != nil && (m != nil || !errors.As(err, &at)) {
			t.Errorf("%s: %v, want %v", why, err, test.want)
		}
	}
	f := lists(t, 3*PageSize, nil, "ram")
	const bitmap = 8 + 1 + 3 + 8 + 4 + 3*8
	if _, err := f.WriteAt([]byte{1 << 3}, bitmap); err != nil {
		t.Fatal(err)
	}
	var at *Error
	if _, err := OpenMapped(f, 0); !errors.Is(err, ErrOffset) || !errors.As(err, &at) || at.Block != "ram" || at.Offset != 3*PageSize {
		t.Errorf("a page behind the block: %v", err)
	}
}

// The last page of a block would reach beyond it, and what follows is not found.
func TestABlockOfAMappedFileIsWholePages(t *testing.T) {
	p := body(t, func(w *qemufile.Writer) {
		const length = 1<<16 + PageSize
		w.PutBE64(length | flagMemSize)
		w.PutCountedString("a")
		w.PutBE64(length)
		w.PutBE32(mappedVersion)
		w.PutBE64(1 << 16)
		at := uint64(w.Transferred()) + 16
		w.PutBE64(at)
		w.PutBE64(at + 8)
		w.Write([]byte{3, 7: 0})
		w.Write(make([]byte, 2<<16))
		w.PutBE64(flagEOS)
	})
	k := Walker{Format: Format{MappedRAM: true}}
	pages := 0
	err := k.Walk(reader(p), func(rec *Record) error {
		if rec.Page() {
			pages++
		}
		return nil
	})
	var at *Error
	if !errors.Is(err, ErrMapped) || !errors.As(err, &at) || at.Block != "a" || pages != 0 {
		t.Errorf("%d pages, %v", pages, err)
	}
}

// With x-ignore-shared a file lists blocks of which it has no page, as both sides see them.
func TestAMappedFileHasNoPageOfASharedBlock(t *testing.T) {
	shared, g := pages(t, "shm", 4), page(7)
	shared.Shared = true
	copy(shared.Host, g)
	for bitmap, want := range map[byte]error{0: nil, 2: ErrIgnored} {
		c := newCache(t, newGuest(t, shared), CacheConfig{Format: Format{IgnoreShared: true, MappedRAM: true}})
		err := c.LoadState(reader(body(t, func(w *qemufile.Writer) {
			w.PutBE64(4*PageSize | flagMemSize)
			w.PutCountedString(shared.Name)
			w.PutBE64(4 * PageSize)
			w.PutBE64(shared.GPA)
			w.PutBE32(mappedVersion)
			w.PutBE64(PageSize)
			at := uint64(w.Transferred()) + 16
			w.PutBE64(at)
			w.PutBE64(at + 8)
			w.Write([]byte{bitmap, 7: 0})
			w.Write(make([]byte, 4*PageSize))
			w.PutBE64(flagEOS)
		})), Version)
		if !errors.Is(err, want) {
			t.Errorf("bitmap %#x: %v, want %v", bitmap, err, want)
		}
		if err := c.Flush(); (err == nil) != (want == nil) || !bytes.Equal(shared.Host[:PageSize], g) {
			t.Errorf("bitmap %#x: flushed: %v", bitmap, err)
		}
	}
}

// sized returns a section body with a block list, and every page of the blocks, of size bytes each.
func sized(t testing.TB, size int, blocks []BlockInfo, content func(i int) byte) []byte {
	t.Helper()
	return body(t, func(w *qemufile.Writer) {
		list := Record{Kind: KindBlockList, Blocks: blocks}
		for _, b := range blocks {
			list.Total += b.Length
		}
		list.Put(w, Format{})
		n := 0
		for _, b := range blocks {
			for off := uint64(0); off < b.Length; off += uint64(size) {
				rec := Record{Kind: KindZero, Block: b.Name, Continue: off > 0, Offset: off, PageSize: size}
				if c := content(n); c != 0 {
					rec.Kind, rec.Data = KindPage, bytes.Repeat([]byte{c}, size)
				}
				rec.Put(w, Format{})
				n++
			}
		}
		eos := Record{Kind: KindEOS}
		eos.Put(w, Format{})
	})
}

func TestThePageSizeIsFoundOut(t *testing.T) {
	for size := minPageSize; size <= maxPageSize; size *= 2 {
		for what, content := range map[string]func(i int) byte{
			"zeros":         func(int) byte { return 0 },
			"contents":      func(i int) byte { return byte(i) | 1 },
			"some":          func(i int) byte { return byte(i % 3) },
			"late contents": func(i int) byte { return byte(i / 12) },
		} {
			blocks := []BlockInfo{{Name: "flash", Length: uint64(16 * size)}, {Name: "ram", Length: uint64(8 * size)}}
			in := sized(t, size, blocks, content)
			k := Walker{Detect: true}
			pages := 0
			err := k.Walk(qemufile.NewReader(bytes.NewReader(in)), func(rec *Record) error {
				if rec.Page() {
					p := make([]byte, size)
					if err := rec.Apply(p); err != nil || p[0] != content(pages) {
						t.Errorf("%s of %d: page %d is %v, %v", what, size, pages, rec.Kind, err)
					}
					pages++
				}
				return nil
			})
			if err != nil || pages != 24 || k.Size() != size {
				t.Errorf("%s of %d: %d pages of %d, %v", what, size, pages, k.Size(), err)
			}
			// And it comes back as it was.
			k = Walker{PageSize: size}
			again := body(t, func(w *qemufile.Writer) {
				if err := k.Walk(reader(in), func(rec *Record) error { rec.Put(w, Format{}); return nil }); err != nil {
					t.Errorf("%s of %d, told: %v", what, size, err)
				}
			})
			if !bytes.Equal(again, in) || !k.Certain() {
				t.Errorf("%s of %d: written again, it differs", what, size)
			}
		}
	}
}

func TestCompressedPagesHaveAnySize(t *testing.T) {
	for _, size := range []int{1024, PageSize, 65536} {
		want := bytes.Repeat([]byte{1, 2, 3, 4}, size/4)
		rec := Record{Kind: KindCompressed, Data: deflated(t, want), PageSize: size}
		got := make([]byte, size)
		if err := rec.Apply(got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: %v", size, err)
		}
		for _, n := range []int{size - 4, size + 4} {
			rec.Data = deflated(t, make([]byte, n))
			if err := rec.Apply(got); !errors.Is(err, ErrCompressed) {
				t.Errorf("%d bytes for a page of %d: %v", n, size, err)
			}
		}
	}
}

// The bitmaps of the blocks of a file are bounded together: it may be sparse, and say anything.
func TestThePagesOfAMappedFileAreBoundedTogether(t *testing.T) {
	f := mappedFile(t)
	blocks := []BlockInfo{{Name: "a", Length: 5 * PageSize}, {Name: "b", Length: 2 * PageSize}}
	if _, err := CreateMapped(f, 0, blocks); err != nil {
		t.Fatal(err)
	}
	for _, told := range []uint64{maxMappedAll - 7, maxMappedAll - 6} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		k := Walker{Format: Format{MappedRAM: true}, told: told}
		var named []string
		err := k.Walk(qemufile.NewReader(f), func(rec *Record) error {
			if rec.Kind == KindMappedBlock {
				named = append(named, rec.Block)
			}
			return nil
		})
		if told == maxMappedAll-7 {
			if err != nil || len(named) != 2 {
				t.Errorf("as many pages as may be: blocks %q, %v", named, err)
			}
			continue
		}
		if e := (*Error)(nil); !errors.Is(err, ErrMapped) || !errors.As(err, &e) || e.Block != "b" || len(named) != 1 {
			t.Errorf("one page more: blocks %q, %v", named, err)
		}
	}
}
