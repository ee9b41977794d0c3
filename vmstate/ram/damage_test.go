package ram

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
)

// cuts returns the sections of a RAM stream as one input, cut at its records, and its blocks.
func cuts(t testing.TB, f Format, bodies ...[]byte) (in damage.Input, blocks []BlockInfo) {
	t.Helper()
	k := Walker{Format: f}
	for _, b := range bodies {
		base := len(in.Bytes)
		if err := k.Walk(reader(b), func(rec *Record) error {
			in.Cuts = append(in.Cuts, base+int(rec.Stream))
			blocks = append(blocks, rec.Blocks...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		in.Bytes = append(in.Bytes, b...)
	}
	return in, blocks
}

// allocated returns how many bytes fn takes in all, and so how many at once, at most.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A sample is a RAM stream, with its blocks.
type sample struct {
	damage.Input
	blocks []BlockInfo
	format Format
}

// sampled returns the streams of the vectors, and one that has every kind of record.
func sampled(t testing.TB) (samples []sample) {
	t.Helper()
	add := func(f Format, bodies ...[]byte) {
		in, blocks := cuts(t, f, bodies...)
		samples = append(samples, sample{in, blocks, f})
	}
	for _, x := range vectors {
		add(x.format, ramBodies(t, readVector(t, x.file), x.format)...)
	}
	add(Format{}, slices.Concat(unhex(t, "0000000000008004 03 72616d 0000000000006000 03 766761 0000000000002000 0000000000001008 03 72616d"), page(1),
		compressed(t, 0x2000, deflated(t, page(2))), unhex(t, "0000000000001060 01 0003 0501aa 0000000000000002 03 766761 00 0000000000001022 00"+eosHex)))
	return samples
}

// A stream of QEMU that was damaged loads into a cache or is refused, and changes the guest with
// a flush only; and the same goes for one with every kind of record.
func TestADamagedStreamIsLoadedOrRefused(t *testing.T) {
	samples := sampled(t)
	var others []damage.Input
	for _, s := range samples {
		others = append(others, s.Input)
	}
	for i, s := range samples {
		var blocks []Block
		for _, b := range s.blocks {
			blocks = append(blocks, Block{Name: b.Name, Host: newMemory(t, int(b.Length)), Shared: s.format.IgnoreShared, Resizable: i == 0})
		}
		g := newGuest(t, blocks...)
		loadsOrRefuses(t, g, s.Bytes, s.format)
		for how, p := range damage.Copies(1, require.Many(20, 50, 1000), s.Input, others...) {
			loadsOrRefuses(t, g, p, s.format)
			if t.Failed() {
				t.Fatalf("stream %d, %s", i, how)
			}
		}
	}
}

// A guest's memory and a cache take the same from a stream, damaged or not.
func TestMemoryTakesWhatACacheTakes(t *testing.T) {
	for i, s := range sampled(t) {
		if s.format != (Format{}) {
			continue // a Lazy has no memory that is shared, and hears of postcopy by a command
		}
		memory := func() (blocks []Block) {
			for _, b := range s.blocks {
				blocks = append(blocks, Block{Name: b.Name, Host: newMemory(t, int(b.Length))})
			}
			return blocks
		}
		cached, lazy := newGuest(t, memory()...), memory()
		loads := func(how string, p []byte) (both bool) {
			t.Helper()
			for i := range lazy {
				clear(lazy[i].Host)
				clear(cached.blocks[i].Host)
			}
			c, err := NewCache(cached.blocks, cached, CacheConfig{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			l, err := NewLazy(lazy)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			r, rl := reader(p), reader(p)
			for err == nil && r.Offset() < int64(len(p)) {
				err = c.LoadState(r, Version)
			}
			var lerr error
			for lerr == nil && rl.Offset() < int64(len(p)) {
				lerr = l.LoadState(rl, Version)
			}
			if e := (*Error)(nil); lerr != nil && !errors.As(lerr, &e) {
				t.Errorf("%s: untyped error %v", how, lerr)
			}
			if err != nil || lerr != nil {
				return false
			}
			flush(t, c)
			for i := range lazy {
				if !bytes.Equal(lazy[i].Host, cached.blocks[i].Host) {
					t.Errorf("%s: block %q differs", how, lazy[i].Name)
				}
			}
			return true
		}
		if !loads("as it was", s.Bytes) {
			t.Errorf("stream %d is refused", i)
		}
		loaded, n := 0, 0
		for how, p := range damage.Copies(3, require.Many(20, 50, 1000), s.Input) {
			n++
			if loads(how, p) {
				loaded++
			}
			if t.Failed() {
				t.Fatalf("stream %d, %s", i, how)
			}
		}
		if t.Logf("stream %d: %d of %d were loaded by both", i, loaded, n); loaded == 0 || loaded == n {
			t.Errorf("stream %d: %d of %d copies were loaded", i, loaded, n)
		}
	}
}

// bytesFile is a file in memory.
type bytesFile []byte

func (f bytesFile) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(f).ReadAt(p, at) }

func (f bytesFile) WriteAt([]byte, int64) (int, error) { return 0, errors.New("a test writes to it") }

// A mapped-ram file that was damaged is opened or refused, by who goes on writing it and by who has
// a guest's memory from it. It takes no more memory than its bitmaps, and nothing changes before.
func TestADamagedMappedFileIsOpenedOrRefused(t *testing.T) {
	blocks := []Block{pages(t, "ram", 70), pages(t, "vga", 3), pages(t, "rom", 1)}
	for i, b := range blocks {
		random(b, uint64(i))
	}
	whole, err := io.ReadAll(inFile(t, 0, blocks...))
	if err != nil {
		t.Fatal(err)
	}
	in := damage.Input{Bytes: whole}
	k := Walker{Format: Format{MappedRAM: true}}
	if err := k.Walk(qemufile.NewReader(bytes.NewReader(whole)), func(rec *Record) error {
		switch rec.Kind {
		case KindMappedBlock:
			// A bitmap, and behind it the pages; before it, the entry of the list and the header.
			at := int(rec.Mapped.Bitmap)
			in.Cuts = append(in.Cuts, at-mappedHeader-8-1-len(rec.Block), at-mappedHeader, at-16, at, int(rec.Mapped.Pages))
		case KindEOS:
			in.Cuts = append(in.Cuts, int(rec.Stream))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	l, err := NewLazy([]Block{pages(t, "ram", 70), pages(t, "vga", 3), pages(t, "rom", 1)})
	if err != nil {
		t.Fatal(err)
	}
	const most = 1 << 20 // beside the bitmaps, of which each may be claimed by as much of the file
	check := func(how string, p []byte) (opened bool) {
		t.Helper()
		var e *Error
		var err error
		if n := allocated(func() { _, err = OpenMapped(bytesFile(p), 0) }); n > most+8*uint64(len(p)) {
			t.Errorf("%s: %d bytes to write on in %d", how, n, len(p))
		}
		if err != nil && !errors.As(err, &e) {
			t.Errorf("%s: untyped error %v", how, err)
		}
		l.from = nil
		opened = err == nil
		if n := allocated(func() { _, err = l.OpenMapped(bytesFile(p), 0) }); n > most {
			t.Errorf("%s: %d bytes to open %d", how, n, len(p))
		}
		if err != nil && (!errors.As(err, &e) || l.from != nil) {
			t.Errorf("%s: error %v, and opened: %v", how, err, l.from != nil)
		}
		if err == nil && !opened {
			t.Errorf("%s: it can be read and not be written", how)
		}
		for i := range l.blocks {
			if err == nil && len(l.from.blocks[i].has) != len(l.blocks[i].received) {
				t.Errorf("%s: block %q has another length", how, l.blocks[i].Name)
			}
		}
		for i := range l.blocks {
			if !isZero(l.blocks[i].Host) {
				t.Errorf("%s: the guest's memory has changed", how)
			}
		}
		return err == nil
	}
	if !check("as it was", whole) {
		t.Error("what nothing was done to is refused")
	}
	n, opened := 0, 0
	for how, p := range damage.Copies(2, require.Many(40, 100, 1000), in) {
		n++
		if check(how, p) {
			opened++
		}
	}
	if t.Logf("%d of %d were opened", opened, n); opened == 0 || opened == n {
		t.Errorf("%d of %d were opened", opened, n)
	}
}
