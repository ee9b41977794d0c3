package ram

import (
	"errors"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestAListOfDirtyPagesIsNotTrusted(t *testing.T) {
	for _, x := range []struct {
		list, block string
		want        error
	}{
		{"03 726f6d 00000001 00000000 0000000000000001 00", "rom", ErrUnknownBlock},
		{"03 72616d 00000003", "ram", ErrDirtyList},
		{"03 72616d ffffffff", "ram", ErrDirtyList},
		{"03 72616d 00000001 00000002 0000000000000001 00", "ram", ErrDirtyList},
		{"03 72616d 00000001 ffffffff 0000000000000001 00", "ram", ErrDirtyList},
		{"03 72616d 00000001 00000000 0000000000000000 00", "ram", ErrDirtyList},
		{"03 72616d 00000001 00000001 0000000000000040 00", "ram", ErrDirtyList}, // page 70 of 70
		{"03 72616d 00000002 00000000 0000000000000001 00000000 0000000000000002 00", "ram", ErrDirtyList},
		{"03 72616d 00000002 00000001 0000000000000001 00000000 0000000000000001 00", "ram", ErrDirtyList},
		{"03 72616d 00000000 03 72616d 00000000 00", "ram", ErrDirtyList},
		{"04 66696c65 00000001 00000000 0000000000000001 00", "file", ErrDirtyList}, // shared: not sent
	} {
		t.Run(x.list, func(t *testing.T) {
			shared := pages(t, "file", 1)
			shared.Shared = true
			g := newGuest(t, pages(t, "ram", 70), shared)
			s := NewSaver(g.blocks, g, SaverConfig{Format: Format{IgnoreShared: true}})
			var e *Error
			err := s.LoadDirty(reader(unhex(t, x.list)))
			if !errors.Is(err, x.want) || !errors.As(err, &e) || e.Block != x.block || e.Stream != 0 {
				t.Fatalf("LoadDirty = %v (%+v)", err, e)
			}
			if must, _ := s.Pending(false); must != 0 {
				t.Errorf("%d bytes are pending of a list that is refused", must)
			}
		})
	}
}

func TestEveryTruncationOfADirtyListCountsForNothing(t *testing.T) {
	g := newGuest(t, pages(t, "a", 200), pages(t, "b", 200))
	list := unhex(t, "01 61 00000002 00000000 8000000000000001 00000003 0000000000000080 01 62 00000001 00000001 0000000000000002 00")
	s := NewSaver(g.blocks, g, SaverConfig{})
	for n := range list {
		var e *Error
		if err := s.LoadDirty(reader(list[:n])); !errors.As(err, &e) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if must, _ := s.Pending(false); must != 0 {
			t.Fatalf("%d bytes: %d are pending", n, must)
		}
	}
	if err := s.LoadDirty(reader(list)); err != nil {
		t.Fatal(err)
	}
	if must, _ := s.Pending(false); must != 4*PageSize {
		t.Errorf("%d bytes are pending, want 4 pages", must)
	}
}

func TestWhatTheSecondaryWroteIsSentWhole(t *testing.T) {
	prim, sec, s, c, l := stagedPair(t, 100, SaverConfig{XBZRLE: 1 << 20}, CacheConfig{})
	step := func(want Stats) {
		t.Helper()
		checkpoint(t, prim, sec, s, c, l)
		got := s.Stats()
		want.Bytes = got.Bytes
		if got != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
	}
	for i := range 3 {
		prim.write(0, i*PageSize, 200)
	}
	step(Stats{Pages: 3}) // from here on the saver has kept them
	prim.write(0, 0, 201)
	prim.write(0, PageSize, 200) // as it was
	step(Stats{Pages: 1, XBZRLEPages: 1, UnchangedPages: 1})
	prim.write(0, 0, 202)
	prim.write(0, PageSize, 200)
	for i := range 4 { // page 2 and 3 only here
		sec.write(0, i*PageSize, 77)
	}
	step(Stats{Pages: 4})
}

func TestTellingAllocatesNothing(t *testing.T) {
	prim, sec, s, c, _ := stagedPair(t, 1000, SaverConfig{}, CacheConfig{})
	for i := range 300 {
		sec.write(0, i*3*PageSize, 1)
	}
	list := dirtyList(t, c)
	rd := reader(list)
	if n := testing.AllocsPerRun(100, func() {
		rd.ResetBytes(list)
		if err := s.LoadDirty(rd); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("LoadDirty: %v allocations", n)
	}
	w := qemufile.NewWriter(discard{})
	if n := testing.AllocsPerRun(100, func() {
		if err := c.SaveDirty(w); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("SaveDirty: %v allocations", n)
	}
	_ = prim
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// FuzzDirtyList: a list that is taken marks what it says and nothing else, one
// that is refused marks nothing, and neither panics.
func FuzzDirtyList(f *testing.F) {
	f.Add(unhex(f, "00"))
	f.Add(unhex(f, "01 61 00000002 00000000 8000000000000001 00000001 0000000000000020 01 62 00000001 00000000 0000000000000002 00"))
	f.Add(unhex(f, "01 61 00000001 00000001 0000000000000040 00"))
	f.Add(unhex(f, "01 61 ffffffff 00000001 0000000000000040 00"))
	g := newGuest(f, pages(f, "a", 70), pages(f, "b", 3))
	f.Fuzz(func(t *testing.T, list []byte) {
		s := NewSaver(g.blocks, g, SaverConfig{})
		r := reader(list)
		err := s.LoadDirty(r)
		must, _ := s.Pending(false)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || must != 0 {
				t.Fatalf("%d bytes pending, %v", must, err)
			}
			return
		}
		c, err := NewCache(g.blocks, g, CacheConfig{StagedOnly: true})
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		defer c.Close()
		c.Resent()
		flush(t, c)
		for i := range s.blocks {
			g.dirty[s.blocks[i].Name].Or(s.blocks[i].dirty)
		}
		again := dirtyList(t, c)
		s2 := NewSaver(g.blocks, g, SaverConfig{})
		if err := s2.LoadDirty(reader(again)); err != nil {
			t.Fatal(err)
		}
		for i := range s.blocks {
			if !slices.Equal(s.blocks[i].dirty, s2.blocks[i].dirty) {
				t.Fatalf("block %d: %x became %x", i, s.blocks[i].dirty, s2.blocks[i].dirty)
			}
		}
	})
}
