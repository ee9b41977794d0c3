package ram

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestBlockListMustNameEveryBlock(t *testing.T) {
	g := newGuest(t, pages(t, "a", 1), pages(t, "b", 1))
	c := newCache(t, g, CacheConfig{})
	err := loadBytes(c, unhex(t, "0000000000001004 01 61 0000000000001000"+eosHex))
	var e *Error
	if !errors.Is(err, ErrBlockList) || !errors.As(err, &e) || e.Block != "b" {
		t.Fatalf("LoadState = %v", err)
	}
}

func TestResizableBlocks(t *testing.T) {
	prim := newGuest(t, pages(t, "rom", 2))
	prim.write(0, 0, page(1)...)
	prim.write(0, PageSize, page(2)...)
	for _, x := range []struct {
		name      string
		resizable bool
		max, used int
		want      error
	}{
		{"grows", true, 4, 1, nil},
		{"shrinks", true, 4, 4, nil},
		{"stays", false, 2, 2, nil},
		{"is not resizable", false, 4, 4, ErrBlockList},
		{"is too small", true, 1, 1, ErrBlockList},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := pages(t, "rom", x.max)
			b.Used, b.Resizable = uint64(x.used)*PageSize, x.resizable
			var told []uint64
			b.Resize = func(n uint64) error { told = append(told, n); return nil }
			sec := newGuest(t, b)
			c, l := newCache(t, sec, CacheConfig{}), newLink(t)
			s := NewSaver(prim.blocks, prim, SaverConfig{})
			l.setup(s)
			l.complete(s)
			if err := l.w.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := c.LoadState(l.r, Version); !errors.Is(err, x.want) {
				t.Fatalf("LoadState = %v, want %v", err, x.want)
			} else if err != nil {
				return
			}
			if len(told) > 0 {
				t.Error("the guest was told before Flush")
			}
			l.load(c)
			flush(t, c)
			if x.used != 2 && !slices.Equal(told, []uint64{2 * PageSize}) {
				t.Errorf("the guest was told %v", told)
			}
			wantSame(t, "the block", newGuest(t, Block{Name: "rom", Host: b.Host[:2*PageSize]}), prim)
		})
	}
}

func TestPagesOfAnIgnoredBlockAreRefused(t *testing.T) {
	shared := pages(t, "ram", 2)
	shared.Shared = true
	g := newGuest(t, shared)
	c := newCache(t, g, CacheConfig{Format: Format{IgnoreShared: true}})
	if err := loadBytes(c, unhex(t, "0000000000000002 03 72616d 00"+eosHex)); !errors.Is(err, ErrIgnored) {
		t.Errorf("LoadState = %v", err)
	}
	c.NewSession()
	if err := loadBytes(c, unhex(t, "0000000000002004 03 72616d 0000000000002000 0000000000005000"+eosHex)); !errors.Is(err, ErrBlockList) {
		t.Errorf("another guest address: %v", err)
	}
}

func TestHugePagesInABlockListMustMatch(t *testing.T) {
	for _, x := range []struct {
		size string
		want error
	}{{"0000000000200000", nil}, {"0000000040000000", ErrBlockList}, {"0000000000000000", ErrBlockList}} {
		b := pages(t, "ram", 2)
		b.HostPageSize = 2 << 20
		g := newGuest(t, b)
		c := newCache(t, g, CacheConfig{})
		c.PostcopyAdvised()
		err := loadBytes(c, unhex(t, "0000000000002004 03 72616d 0000000000002000"+x.size+eosHex))
		if !errors.Is(err, x.want) {
			t.Errorf("page size %s: %v, want %v", x.size, err, x.want)
		}
	}
}

func TestBlockListIsTheOneQEMUWrites(t *testing.T) {
	ram := pages(t, "ram", 256)
	for _, x := range []struct {
		name string
		b    Block
		f    Format
		want string
	}{
		{"plain", ram, Format{}, "0000000000100004 03 72616d 0000000000100000 0000000000000010"},
		{"x-ignore-shared", ram, Format{IgnoreShared: true},
			"0000000000100004 03 72616d 0000000000100000 0000000000000000 0000000000000010"},
		{"postcopy, ordinary pages", ram, Format{Postcopy: true},
			"0000000000100004 03 72616d 0000000000100000 0000000000000010"},
		{"postcopy, huge pages, shared", Block{Name: "ram", Host: ram.Host, HostPageSize: 2 << 20, GPA: 1 << 32},
			Format{Postcopy: true, IgnoreShared: true},
			"0000000000100004 03 72616d 0000000000100000 0000000000200000 0000000100000000 0000000000000010"},
		{"half used", Block{Name: "ram", Host: ram.Host, Used: 0x80000}, Format{},
			"0000000000080004 03 72616d 0000000000080000 0000000000000010"},
	} {
		t.Run(x.name, func(t *testing.T) {
			g := newGuest(t, x.b)
			s := NewSaver(g.blocks, g, SaverConfig{Format: x.f})
			got := body(t, func(w *qemufile.Writer) {
				if err := s.SaveSetup(w); err != nil {
					t.Fatal(err)
				}
			})
			if want := unhex(t, x.want); !bytes.Equal(got, want) {
				t.Fatalf("% x\nwant % x", got, want)
			}
		})
	}
}

func TestSharedBlocksAreListedAndNotSent(t *testing.T) {
	shared := pages(t, "shared", 8)
	shared.Shared, shared.GPA = true, 1<<30
	prim := newGuest(t, pages(t, "ram", 8), shared)
	sec := prim.twin(t)
	sec.blocks[1].Host = prim.blocks[1].Host
	f := Format{IgnoreShared: true}
	s := NewSaver(prim.blocks, prim, SaverConfig{Format: f})
	c, l := newCache(t, sec, CacheConfig{Format: f}), newLink(t)
	prim.write(0, 0, 1)
	prim.write(1, 0, 2)
	l.sync(s, c)
	wantSame(t, "after the initial synchronisation", sec, prim)
	if n := s.Stats().Pages; n != 8 {
		t.Errorf("%d pages were sent, want the 8 of the block that is not shared", n)
	}
	if c.blocks[1].page != nil {
		t.Error("the shared block has a cache")
	}
}

func TestBadBlocksAreRefused(t *testing.T) {
	mem := newMemory(t, 2*PageSize)
	for _, x := range []struct {
		name   string
		blocks []Block
	}{
		{"no name", []Block{{Host: mem}}},
		{"a name of 256 bytes", []Block{{Name: strings.Repeat("x", 256), Host: mem}}},
		{"the same name twice", []Block{{Name: "a", Host: mem}, {Name: "a", Host: mem}}},
		{"half a page", []Block{{Name: "a", Host: mem[:PageSize/2]}}},
		{"more used than there is", []Block{{Name: "a", Host: mem, Used: 3 * PageSize}}},
		{"half a page used", []Block{{Name: "a", Host: mem, Used: 100}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			var e *Error
			if _, err := NewCache(x.blocks, nil, CacheConfig{}); !errors.As(err, &e) {
				t.Errorf("NewCache = %v", err)
			}
			s := NewSaver(x.blocks, nil, SaverConfig{})
			w := qemufile.NewWriter(io.Discard)
			if err := s.SaveSetup(w); !errors.As(err, &e) {
				t.Errorf("SaveSetup = %v", err)
			}
			if _, err := s.SaveIterate(w); err == nil {
				t.Error("SaveIterate went on")
			}
			if _, err := s.Capture(); err == nil {
				t.Error("Capture went on")
			}
			if err := s.SaveComplete(w); err == nil {
				t.Error("SaveComplete went on")
			}
			s.Pending(true)
			s.SaveCleanup()
		})
	}
}

// A reader who does not know the guest sees which blocks say their page size.
func TestAWalkTellsPageSizesInABlockList(t *testing.T) {
	for _, f := range []Format{{Postcopy: true}, {Postcopy: true, IgnoreShared: true}} {
		for _, list := range [][]BlockInfo{
			{{Name: "ram", Length: 0x4000}},
			{{Name: "ram", Length: 0x200000, PageSize: 0x200000, GPA: 0x100000}},
			{{Name: "a", Length: 0x1000}, {Name: "b", Length: 0x40000000, PageSize: 0x40000000}, {Name: "c", Length: 0x3000, GPA: 0x1000}},
			{{Name: "a", Length: 0x200000, PageSize: 0x200000, GPA: 1 << 32}, {Name: "b", Length: 0x200000, PageSize: 0x200000}},
		} {
			want := slices.Clone(list)
			var total uint64
			for i := range want {
				total += want[i].Length
				if !f.IgnoreShared {
					want[i].GPA = 0
				}
			}
			in := body(t, func(w *qemufile.Writer) {
				putBlockList(w, list, total, f)
				w.PutBE64(flagEOS)
			})
			var got []BlockInfo
			k := Walker{Format: f}
			if err := k.Walk(reader(in), func(rec *Record) error {
				got = append(got, rec.Blocks...)
				return nil
			}); err != nil || !slices.Equal(got, want) {
				t.Errorf("%+v: %+v, %v; want %+v", f, got, err, want)
			}
		}
	}
}
