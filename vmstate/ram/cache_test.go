package ram

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/qemufile"
)

const eosHex = "0000000000000010"

// one returns a cache of one block "ram" of n pages, and its guest.
func one(t testing.TB, n int, cfg CacheConfig) (*guest, *Cache) {
	g := newGuest(t, pages(t, "ram", n))
	return g, newCache(t, g, cfg)
}

// deflated returns p, compressed by zlib.
func deflated(t testing.TB, p []byte) []byte {
	var buf bytes.Buffer
	z := zlib.NewWriter(&buf)
	if _, err := z.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// compressed returns a COMPRESS_PAGE record of block "ram".
func compressed(t testing.TB, off uint64, z []byte) []byte {
	return body(t, func(w *qemufile.Writer) {
		w.PutBE64(off | flagCompressed)
		w.PutCountedString("ram")
		w.PutBE32(uint32(len(z)))
		w.Write(z)
	})
}

func TestBadInput(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		big := deflated(t, make([]byte, PageSize+1))
		good := deflated(t, page(3))
		for _, x := range []struct {
			name   string
			body   []byte // complete, or what comes before a page that must not matter
			cfg    CacheConfig
			want   error
			block  string
			offset uint64
		}{
			{name: "unknown block", body: unhex(t, "0000000000001008 03 726f6d"), want: ErrUnknownBlock, block: "rom", offset: 0x1000},
			{name: "empty block name", body: unhex(t, "0000000000001008 00"), want: ErrUnknownBlock, offset: 0x1000},
			{name: "page at the end of the block", body: unhex(t, "0000000000004002 03 72616d 00"), want: ErrOffset, block: "ram", offset: 0x4000},
			{name: "page at the end of the address space", body: unhex(t, "fffffffffffff008 03 72616d"), want: ErrOffset, block: "ram", offset: 0xfffffffffffff000},
			{name: "delta beyond the end", body: unhex(t, "0000000000004040 03 72616d 01 0000"), want: ErrOffset, block: "ram", offset: 0x4000},
			{name: "compressed page beyond the end", body: unhex(t, "0000000000004100 03 72616d 00000000"), want: ErrOffset, block: "ram", offset: 0x4000},
			{name: "page with CONTINUE and no block", body: unhex(t, "0000000000000028"), want: ErrNoBlock},
			{name: "zero page with CONTINUE and no block", body: unhex(t, "0000000000000022"), want: ErrNoBlock},
			{name: "no flags", body: unhex(t, "0000000000000000"), want: ErrFlags},
			{name: "CONTINUE alone", body: unhex(t, "0000000000000020"), want: ErrFlags},
			{name: "unaligned offset", body: unhex(t, "0000000000000808 03 72616d"), want: ErrFlags},
			{name: "FULL", body: unhex(t, "0000000000000001"), want: ErrFlags},
			{name: "HOOK", body: unhex(t, "0000000000000080"), want: ErrFlags},
			{name: "PAGE and ZERO", body: unhex(t, "000000000000000a 03 72616d"), want: ErrFlags},
			{name: "PAGE and EOS", body: unhex(t, "0000000000000018 03 72616d"), want: ErrFlags},
			{name: "XBZRLE and PAGE", body: unhex(t, "0000000000000048 03 72616d"), want: ErrFlags},
			{name: "MEM_SIZE and EOS", body: unhex(t, "0000000000000014"), want: ErrFlags},
			{name: "unknown flag", body: unhex(t, "0000000000000400"), want: ErrFlags},
			{name: "fill byte, where refused", body: unhex(t, "0000000000001002 03 72616d 55"),
				cfg: CacheConfig{ZeroFillOnly: true}, want: ErrFill, block: "ram", offset: 0x1000},

			{name: "block list with an unknown name", body: unhex(t, "0000000000004004 03 726f6d 0000000000004000"), want: ErrUnknownBlock, block: "rom"},
			{name: "block of another length", body: unhex(t, "0000000000005004 03 72616d 0000000000005000"), want: ErrBlockList, block: "ram"},
			{name: "block longer than the total", body: unhex(t, "0000000000003004 03 72616d 0000000000004000"), want: ErrBlockList, block: "ram"},
			{name: "total longer than the blocks", body: unhex(t, "0000000000005004 03 72616d 0000000000004000 0000000000001008 03 72616d"), want: ErrUnknownBlock},
			{name: "block listed twice", body: unhex(t, "0000000000008004 03 72616d 0000000000004000 03 72616d 0000000000004000"), want: ErrBlockList, block: "ram"},
			{name: "length that wraps around", body: unhex(t, "0000000000004004 03 72616d fffffffffffff000"), want: ErrBlockList, block: "ram"},

			{name: "XBZRLE with another encoding", body: unhex(t, "0000000000001040 03 72616d 02 0004 0502aabb"), want: ErrXBZRLE, block: "ram", offset: 0x1000},
			{name: "XBZRLE longer than a page", body: unhex(t, "0000000000001040 03 72616d 01 1001"), want: ErrXBZRLE, block: "ram", offset: 0x1000},
			{name: "corrupt XBZRLE", body: unhex(t, "0000000000001040 03 72616d 01 0003 050001"), want: ErrXBZRLE, block: "ram", offset: 0x1000},

			{name: "compressed page of 4 GiB", body: unhex(t, "0000000000001100 03 72616d ffffffff"), want: ErrCompressed, block: "ram", offset: 0x1000},
			{name: "compressed page that is no zlib", body: compressed(t, 0x1000, []byte("hello, world")), want: ErrCompressed, block: "ram", offset: 0x1000},
			{name: "compressed page without end", body: compressed(t, 0x1000, good[:len(good)-4]), want: ErrCompressed, block: "ram", offset: 0x1000},
			{name: "compressed page with a wrong checksum", body: compressed(t, 0x1000, append(slices.Clone(good[:len(good)-1]), 0)), want: ErrCompressed, block: "ram", offset: 0x1000},
			{name: "more than a page compressed", body: compressed(t, 0x1000, big), want: ErrCompressed, block: "ram", offset: 0x1000},
			{name: "less than a page compressed", body: compressed(t, 0x1000, deflated(t, []byte("abc"))), want: ErrCompressed, block: "ram", offset: 0x1000},

			{name: "end of the stream", body: nil, want: io.ErrUnexpectedEOF},
			{name: "end of the stream after a page", body: unhex(t, "0000000000001002 03 72616d 00"), want: io.ErrUnexpectedEOF},
			{name: "end of the stream in a name", body: unhex(t, "0000000000001008 03 7261"), want: io.ErrUnexpectedEOF},
			{name: "end of the stream in a page", body: unhex(t, "0000000000001008 03 72616d 0102"), want: io.ErrUnexpectedEOF, block: "ram", offset: 0x1000},
			{name: "end of the stream before a page", body: unhex(t, "0000000000001008 03 72616d"), want: io.ErrUnexpectedEOF, block: "ram", offset: 0x1000},
		} {
			t.Run(x.name, func(t *testing.T) {
				g, c := k.one(t, 4, x.cfg)
				k.begun(t, c)
				g.write(0, 0, 1, 2, 3)
				before := g.snapshot()
				err := loadBytes(c, append(slices.Clone(x.body), 0, 0, 0, 0)[:len(x.body)])
				var e *Error
				if !errors.Is(err, x.want) || !errors.As(err, &e) {
					t.Fatalf("LoadState = %v, want %v", err, x.want)
				}
				if e.Op != "load" || e.Block != x.block || e.Offset != x.offset || e.Stream < 0 || e.Stream > int64(len(x.body)) {
					t.Errorf("error is at %+v, want block %q offset %#x", e, x.block, x.offset)
				}
				if e.Error() == "" {
					t.Error("no text")
				}
				if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
					t.Errorf("Flush after a failed load = %v", err)
				}
				wantMemory(t, "the guest", g, before)

				// A walk without a guest finds the same, but for what only a guest
				// can know.
				k := &Walker{}
				err = k.Walk(reader(x.body), func(rec *Record) error {
					return rec.Apply(make([]byte, PageSize))
				})
				if err == nil {
					t.Error("a walk finds nothing wrong")
				}
			})
		}
	})
}

func TestWrongVersion(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		_, c := k.one(t, 1, CacheConfig{})
		for _, v := range []uint32{0, 3, 5, 1 << 31} {
			err := c.LoadState(reader(unhex(t, eosHex)), v)
			if !errors.Is(err, ErrVersion) {
				t.Errorf("version %d: %v", v, err)
			}
		}
	})
}

// What QEMU 7.2 was seen to accept.
func TestOddButAccepted(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		for _, x := range []struct{ name, body string }{
			{"EOS with CONTINUE", "0000000000000030"},
			{"EOS with an address", "00000000abcde010"},
			{"empty block list", "0000000000000004" + eosHex},
			{"block list twice", "0000000000004004 03 72616d 0000000000004000 0000000000004004 03 72616d 0000000000004000" + eosHex},
			{"pages without a block list", "0000000000001002 03 72616d 00" + eosHex},
			{"empty delta", "0000000000001040 03 72616d 01 0000" + eosHex},
			{"barrier for multifd", "0000000000000200" + eosHex},
			{"fill byte", "0000000000001002 03 72616d 55" + eosHex},
		} {
			t.Run(x.name, func(t *testing.T) {
				g, c := k.one(t, 4, CacheConfig{})
				if err := loadBytes(c, unhex(t, x.body)); err != nil {
					t.Fatal(err)
				}
				flush(t, c)
				if x.name == "fill byte" && g.blocks[0].Host[0x1fff] != 0x55 {
					t.Error("the page was not filled")
				}
			})
		}
	})
}

func TestEveryKindOfPageIsStagedAndThenFlushed(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		g, c := k.one(t, 6, CacheConfig{})
		if err := loadBytes(c, unhex(t, eosHex)); err != nil {
			t.Fatal(err)
		}
		flush(t, c)
		for i := range 6 {
			copy(g.blocks[0].Host[i*PageSize:], page(0xee)) // not logged: what a test wants to see untouched
		}
		before := g.snapshot()
		in := slices.Concat(
			unhex(t, "0000000000000008 03 72616d"), page(1),
			unhex(t, "0000000000001028"), page(2),
			unhex(t, "0000000000002022 00"),
			unhex(t, "0000000000001060 01 0004 0502aabb"),
			unhex(t, "0000000000003120"), unhex(t, fmt.Sprintf("%08x", len(deflated(t, page(4))))), deflated(t, page(4)),
			unhex(t, "0000000000004028"), page(5),
			unhex(t, "0000000000004022 00"), // the last record of a page is what counts
			unhex(t, eosHex))
		if err := loadBytes(c, in); err != nil {
			t.Fatal(err)
		}
		if got, want := c.Stats(), (CacheStats{Stats: Stats{Pages: 7, ZeroPages: 2, XBZRLEPages: 1, Bytes: uint64(len(in))}}); got != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
		wantMemory(t, "before Flush", g, before)
		flush(t, c)
		p2 := page(2)
		p2[5], p2[6] = 0xaa, 0xbb
		wantMemory(t, "after Flush", g, [][]byte{slices.Concat(page(1), p2, page(0), page(4), page(0), page(0xee))})
		if n := c.Stats().Flushed; n != 5 {
			t.Errorf("%d pages were flushed, want 5", n)
		}
		flush(t, c)
		if n := c.Stats(); n != (CacheStats{}) {
			t.Errorf("a Flush with nothing staged: %+v", n)
		}
	})
}

func TestWhatTheSecondaryDirtiedItselfIsPutBack(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		prim := newGuest(t, pages(t, "ram", 10))
		for i := range 10 {
			prim.write(0, i*PageSize, page(byte(i))...)
		}
		sec := prim.twin(t)
		sec.write(0, 9*PageSize, 77) // before it was a secondary
		s, c, l := NewSaver(prim.blocks, prim, SaverConfig{}), k.cache(t, sec, CacheConfig{}), newLink(t)
		l.sync(s, c)
		want := prim.snapshot()
		wantMemory(t, "after the initial synchronisation", sec, want)
		if !sec.on {
			t.Error("the secondary's dirty log is off")
		}
		sec.write(0, 3*PageSize+5, 1, 2, 3)
		sec.write(0, 0, 9) // a page that is zero in the cache
		tell(t, c, s)
		capture(t, s)
		l.complete(s)
		l.load(c)
		flush(t, c)
		wantMemory(t, "after a checkpoint of nothing", sec, want)
		if n := c.Stats().Flushed; n != 2 {
			t.Errorf("%d pages were flushed, want the 2 that the secondary dirtied", n)
		}
	})
}

func TestPagesThatWereNeverSentAreRolledBackToTheFirstFlush(t *testing.T) {
	g, c := one(t, 4, CacheConfig{})
	copy(g.blocks[0].Host[2*PageSize:], page(7))
	if err := loadBytes(c, slices.Concat(unhex(t, "0000000000000008 03 72616d"), page(1), unhex(t, eosHex))); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	want := g.snapshot()
	g.write(0, 2*PageSize, 1, 2, 3)
	g.write(0, 3*PageSize, 1, 2, 3)
	flush(t, c)
	wantMemory(t, "after the roll-back", g, want)
}

func TestDiscardLeavesTheGuestAlone(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		g, c := k.one(t, 4, CacheConfig{})
		if err := loadBytes(c, unhex(t, eosHex)); err != nil {
			t.Fatal(err)
		}
		flush(t, c)
		g.write(0, 0, 1, 2, 3)
		before := g.snapshot()
		if err := loadBytes(c, slices.Concat(unhex(t, "0000000000000008 03 72616d"), page(1), unhex(t, eosHex))); err != nil {
			t.Fatal(err)
		}
		c.Discard()
		if g.on {
			t.Error("the dirty log is still on")
		}
		if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
			t.Errorf("Flush = %v", err)
		}
		wantMemory(t, "the guest", g, before)
		// Nothing but a new session may follow.
		if err := loadBytes(c, unhex(t, "0000000000000002 03 72616d 00"+eosHex)); !errors.Is(err, ErrDiscarded) {
			t.Errorf("a page after Discard: %v", err)
		}
		prim := g.twin(t)
		prim.write(0, 2*PageSize, page(8)...)
		l := newLink(t)
		l.sync(NewSaver(prim.blocks, prim, SaverConfig{}), c)
		wantSame(t, "after a new session", g, prim)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
			t.Errorf("Flush of a closed cache = %v", err)
		}
		if err := loadBytes(c, unhex(t, eosHex)); !errors.Is(err, ErrDiscarded) {
			t.Errorf("LoadState of a closed cache = %v", err)
		}
	})
}

func TestContinueNeedsABlockOfItsOwnConnection(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		_, c := k.one(t, 4, CacheConfig{})
		if err := loadBytes(c, unhex(t, "0000000000000002 03 72616d 00"+eosHex)); err != nil {
			t.Fatal(err)
		}
		if err := loadBytes(c, unhex(t, "0000000000001022 00"+eosHex)); err != nil {
			t.Errorf("the next section of the connection: %v", err)
		}
		c.NewSession()
		if err := loadBytes(c, unhex(t, "0000000000001022 00"+eosHex)); !errors.Is(err, ErrNoBlock) {
			t.Errorf("another connection: %v", err)
		}
	})
}

func TestFailedDirtyLogLeavesTheGuestAndCanBeRepeated(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		prim := newGuest(t, pages(t, "ram", 4))
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, SaverConfig{}), k.cache(t, sec, CacheConfig{}), newLink(t)
		l.sync(s, c)
		prim.write(0, 0, 1)
		sec.write(0, PageSize, 1)
		before := sec.snapshot()
		tell(t, c, s)
		l.complete(s)
		l.load(c)
		boom := errors.New("boom")
		sec.fail = boom
		if err := c.Flush(); !errors.Is(err, boom) {
			t.Fatalf("Flush = %v", err)
		}
		wantMemory(t, "after the failure", sec, before)
		sec.fail = nil
		flush(t, c)
		wantSame(t, "after the repetition", sec, prim)
	})
}

// resident returns how much anonymous memory this process has, in pages.
func resident(t *testing.T) int {
	t.Helper()
	debug.FreeOSMemory() // what other tests have left is not given back between two looks
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skipf("needs /proc/self/status: %v", err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kb int
	if _, err := fmt.Sscanf(rest, "%d kB", &kb); err != nil {
		t.Skipf("needs RssAnon in /proc/self/status: %v", err)
	}
	return kb * 1024 / PageSize
}

// zerosAreShared skips the test where the kernel gives a page of its own to memory that is only
// read, as some do in virtual machines: there a reader cannot help to take it.
func zerosAreShared(t *testing.T, n int) {
	t.Helper()
	p, err := mapping.New(n * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer mapping.Free(p)
	before := resident(t)
	for i := range n {
		if p[i*PageSize] != 0 {
			t.Fatalf("page %d of new memory is not zero", i)
		}
	}
	if got := resident(t) - before; got > n/2 {
		t.Skipf("this kernel takes %d pages of memory for %d that were read and never written", got, n)
	}
}

func TestZeroRecordsTakeNoMemory(t *testing.T) {
	const n = 16384
	zerosAreShared(t, n)
	g, c := one(t, n, CacheConfig{})
	before := resident(t)
	if err := loadBytes(c, body(t, func(w *qemufile.Writer) {
		for i := range uint64(n) {
			w.PutBE64(i*PageSize | flagZero)
			w.PutCountedString("ram")
			w.PutByte(0)
		}
		w.PutBE64(flagEOS)
	})); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	if got := resident(t) - before; got > n/4 {
		t.Errorf("%d pages of zeros took the memory of %d", n, got)
	}
	// What the guest has and the peer never sent does take memory: the test
	// can tell the difference.
	for i := range n {
		g.blocks[0].Host[i*PageSize] = 1
	}
	before = resident(t)
	c.NewSession()
	flush(t, c)
	if got := resident(t) - before; got < n/2 {
		t.Errorf("%d pages took the memory of %d", n, got)
	}
}

func TestEveryTruncationOfASectionFails(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		in := slices.Concat(
			unhex(t, "0000000000004004 03 72616d 0000000000004000"),
			unhex(t, "0000000000000008 03 72616d"), page(1),
			unhex(t, "0000000000001022 00"),
			unhex(t, "0000000000000060 01 0004 0502aabb"),
			compressed(t, 0x2000, deflated(t, page(4))),
			unhex(t, "0000000000000200"+eosHex))
		g, c := k.one(t, 4, CacheConfig{})
		before := g.snapshot()
		for n := range in {
			if n > 60 && n < 4000 && n%37 != 0 {
				continue // in the middle of a page
			}
			c.NewSession()
			var e *Error
			if err := loadBytes(c, in[:n]); !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &e) {
				t.Fatalf("%d bytes of %d: %v", n, len(in), err)
			}
			k := &Walker{}
			if err := k.Walk(reader(in[:n]), func(*Record) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("walk of %d bytes: %v", n, err)
			}
		}
		if c.KeepsCopy() {
			wantMemory(t, "after all of them", g, before)
		}
		c.NewSession()
		if err := loadBytes(c, in); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPagesFromElsewhereAreStaged(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		shared := pages(t, "shared", 1)
		shared.Shared = true
		g := newGuest(t, pages(t, "ram", 4), shared)
		c := k.cache(t, g, CacheConfig{Format: Format{IgnoreShared: true}})
		k.begun(t, c)
		copy(g.blocks[0].Host[PageSize:], page(9))
		if err := c.StagePage("ram", 0, page(1)); err != nil {
			t.Fatal(err)
		}
		if err := c.StagePage("ram", PageSize, nil); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			block  string
			offset uint64
			page   []byte
			want   error
		}{
			{"rom", 0, nil, ErrUnknownBlock},
			{"ram", 4 * PageSize, nil, ErrOffset},
			{"ram", 1 << 63, nil, ErrOffset},
			{"ram", 100, nil, ErrOffset},
			{"ram", 0, make([]byte, 5), ErrOffset},
			{"shared", 0, nil, ErrIgnored},
		} {
			if err := c.StagePage(x.block, x.offset, x.page); !errors.Is(err, x.want) {
				t.Errorf("%s %#x: %v, want %v", x.block, x.offset, err, x.want)
			}
		}
		if got, want := c.Stats().Stats, (Stats{Pages: 2, ZeroPages: 1, Bytes: PageSize}); got != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
		flush(t, c)
		want := make([]byte, 4*PageSize)
		copy(want, page(1))
		wantMemory(t, "after Flush", g, [][]byte{want, make([]byte, PageSize)})
		c.Discard()
		if err := c.StagePage("ram", 0, nil); !errors.Is(err, ErrDiscarded) {
			t.Errorf("after Discard: %v", err)
		}
	})
}
