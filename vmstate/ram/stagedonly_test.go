package ram

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// stagedPair returns two guests that are in step, the second's cache with nothing
// but what is staged.
func stagedPair(t testing.TB, n int, saver SaverConfig, cfg CacheConfig) (prim, sec *guest, s *Saver, c *Cache, l *link) {
	t.Helper()
	prim = newGuest(t, pages(t, "ram", n))
	for i := range n {
		prim.write(0, i*PageSize, page(byte(i%251)+1)...)
	}
	sec = prim.twin(t)
	s, c, l = NewSaver(prim.blocks, prim, saver), kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, sec, cfg), newLink(t)
	l.sync(s, c)
	return prim, sec, s, c, l
}

// checkpoint makes a checkpoint, and returns how many pages it has.
func checkpoint(t testing.TB, prim, sec *guest, s *Saver, c *Cache, l *link) uint64 {
	t.Helper()
	tell(t, c, s)
	capture(t, s)
	want := prim.snapshot()
	l.complete(s)
	l.load(c)
	flush(t, c)
	wantMemory(t, "after a checkpoint", sec, want)
	return c.Stats().Flushed
}

func TestAStagedOnlyCacheHoldsAtMostTwoDirtySets(t *testing.T) {
	t.Parallel()
	const n = 1024
	prim, sec, s, c, l := stagedPair(t, n, SaverConfig{}, CacheConfig{})
	if m := c.Memory(); m != 0 {
		t.Fatalf("%d bytes are held after the initial synchronisation", m)
	}
	r := rand.New(rand.NewPCG(18, 5))
	var before uint64
	rounds := 40
	if testing.Short() {
		rounds = 14 // each share of the memory twice
	}
	for round := range rounds {
		hot := n / (1 + round%7)
		for range r.IntN(400) {
			prim.write(0, r.IntN(hot)*PageSize+r.IntN(PageSize-1), byte(r.Uint32()))
			sec.write(0, r.IntN(hot)*PageSize+r.IntN(PageSize-1), byte(r.Uint32()))
		}
		pages := checkpoint(t, prim, sec, s, c, l)
		if m := c.Memory(); m > (before+pages)*PageSize {
			t.Fatalf("round %d: %d pages are held, with %d in this checkpoint and %d in the one before", round, m/PageSize, pages, before)
		}
		if round%2 == 0 {
			if err := c.Settle(); err != nil {
				t.Fatal(err)
			}
			if m := c.Memory(); m > pages*PageSize {
				t.Fatalf("round %d: %d pages are held by a cache that has settled, with %d in the checkpoint", round, m/PageSize, pages)
			}
		}
		before = pages
	}
	c.Discard()
	if m := c.Memory(); m != 0 {
		t.Errorf("%d bytes are held by a cache that was discarded", m)
	}
}

func TestThePagesOfALargeCheckpointAreGivenBack(t *testing.T) {
	t.Parallel()
	n := 4096
	if testing.Short() {
		n = 1024
	}
	prim, sec, s, c, l := stagedPair(t, n, SaverConfig{}, CacheConfig{})
	for i := range n {
		prim.write(0, i*PageSize, 0xaa, byte(i))
	}
	checkpoint(t, prim, sec, s, c, l)
	if m := c.Memory(); m != uint64(n)*PageSize {
		t.Fatalf("%d pages are held of a checkpoint of %d", m/PageSize, n)
	}
	prim.write(0, 0, 1)
	checkpoint(t, prim, sec, s, c, l)
	if m := c.Memory(); m != uint64(n)*PageSize {
		t.Fatalf("the next load left %d pages of %d", m/PageSize, n)
	}
	if err := c.Settle(); err != nil {
		t.Fatal(err)
	}
	if m := c.Memory(); m != PageSize {
		t.Fatalf("%d bytes are held of a checkpoint of a page", m)
	}
	// What the system has back reads as zeros.
	if cache := c.blocks[0].page; isZero(cache[:PageSize]) || !isZero(cache[PageSize:]) {
		t.Error("the system did not get back the pages that the last checkpoint did not need, and only those")
	}
}

func TestTheInitialSynchronisationGoesStraightIntoTheGuest(t *testing.T) {
	g, c := kind{cfg: CacheConfig{StagedOnly: true}}.one(t, 4, CacheConfig{})
	copy(g.blocks[0].Host, page(7))
	copy(g.blocks[0].Host[3*PageSize:], page(7))
	in := slices.Concat(
		unhex(t, "0000000000001008 03 72616d"), page(1),
		unhex(t, "0000000000000022 00"), // was the guest's own
		unhex(t, "0000000000002022 55"),
		unhex(t, "0000000000001060 01 0004 0502aabb"), unhex(t, eosHex))
	if err := loadBytes(c, in); err != nil {
		t.Fatal(err)
	}
	if m := c.Memory(); m != 0 {
		t.Errorf("%d bytes are held", m)
	}
	p := page(1)
	p[5], p[6] = 0xaa, 0xbb
	want := [][]byte{slices.Concat(page(0), p, page(0x55), page(7))}
	wantMemory(t, "before the first Flush", g, want)
	flush(t, c)
	wantMemory(t, "after the first Flush", g, want)
	if n := c.Stats().Flushed; n != 3 {
		t.Errorf("Flushed = %d, want 3", n)
	}
}

func TestAPageWrittenHereAndNotSentAgainIsNotCommitted(t *testing.T) {
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	sec.write(0, 3*PageSize, 9, 9, 9)
	before := sec.snapshot()
	if err := loadBytes(c, slices.Concat(unhex(t, "0000000000000008 03 72616d"), page(0xee), unhex(t, eosHex))); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckStaged(); !errors.Is(err, ErrNotResent) {
		t.Errorf("CheckStaged = %v", err)
	}
	var e *Error
	if err := c.Flush(); !errors.Is(err, ErrNotResent) || !errors.As(err, &e) || e.Block != "ram" || e.Offset != 3*PageSize {
		t.Fatalf("Flush = %v", err)
	}
	wantMemory(t, "the guest", sec, before)
	// It is asked for again, and comes.
	if err := c.StagePage("ram", 3*PageSize, page(4)); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckStaged(); err != nil {
		t.Errorf("CheckStaged = %v", err)
	}
	flush(t, c)
	before[0] = slices.Concat(page(0xee), before[0][PageSize:3*PageSize], page(4), before[0][4*PageSize:])
	wantMemory(t, "after the page came", sec, before)
}

func TestADifferenceFromAPageWrittenHereIsRefused(t *testing.T) {
	delta := unhex(t, "0000000000003040 03 72616d 01 0004 0502aabb"+eosHex)
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	sec.write(0, 3*PageSize, 9, 9, 9)
	before := sec.snapshot()
	var e *Error
	if err := loadBytes(c, delta); !errors.Is(err, ErrNotResent) || !errors.As(err, &e) || e.Offset != 3*PageSize {
		t.Fatalf("LoadState = %v", err)
	}
	if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
		t.Errorf("Flush = %v", err)
	}
	if err := c.CheckStaged(); !errors.Is(err, ErrDiscarded) {
		t.Errorf("CheckStaged = %v", err)
	}
	wantMemory(t, "the guest", sec, before)
	// After the page itself it is one from what is staged.
	_, sec, _, c, _ = stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	sec.write(0, 3*PageSize, 9, 9, 9)
	want := sec.snapshot()
	if err := loadBytes(c, slices.Concat(unhex(t, "0000000000003008 03 72616d"), page(5), delta)); err != nil {
		t.Fatal(err)
	}
	if err := loadBytes(c, delta); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	p := page(5)
	p[5], p[6] = 0xaa, 0xbb
	copy(want[0][3*PageSize:], p)
	wantMemory(t, "after both", sec, want)
}

func TestAFailedLogSpoilsTheCheckpointAndNotTheGuest(t *testing.T) {
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	before := sec.snapshot()
	boom := errors.New("boom")
	sec.fail = boom
	if err := c.SaveDirty(qemufile.NewWriter(nil)); !errors.Is(err, boom) {
		t.Errorf("SaveDirty = %v", err)
	}
	if err := loadBytes(c, unhex(t, "0000000000003040 03 72616d 01 0004 0502aabb"+eosHex)); !errors.Is(err, ErrNotResent) {
		t.Errorf("LoadState = %v", err)
	}
	wantMemory(t, "the guest", sec, before)
}

// A peer may send what it likes.
func TestAHostilePeerCannotMakeItGrow(t *testing.T) {
	const n, limit = 512, 16
	for _, x := range []struct {
		name string
		send func(w *qemufile.Writer, round int)
		full bool
	}{
		{"more pages than there is room for", func(w *qemufile.Writer, round int) {
			for i := range uint64(limit + 1) {
				w.PutBE64(i*PageSize | flagPage)
				w.PutCountedString("ram")
				w.Write(page(1))
			}
		}, true},
		{"the same pages again and again", func(w *qemufile.Writer, round int) {
			for i := range uint64(limit) * 40 {
				w.PutBE64(i%limit*PageSize | flagPage)
				w.PutCountedString("ram")
				w.Write(page(byte(i)))
			}
		}, false},
		{"every page filled with a byte", func(w *qemufile.Writer, round int) {
			for i := range uint64(n) {
				w.PutBE64(i*PageSize | flagZero)
				w.PutCountedString("ram")
				w.PutByte(7)
			}
		}, true},
		{"every page made zeros after it came", func(w *qemufile.Writer, round int) {
			for i := range uint64(n) {
				w.PutBE64(i*PageSize | flagPage)
				w.PutCountedString("ram")
				w.Write(page(1))
				w.PutBE64(i*PageSize | flagZero | flagContinue)
				w.PutByte(0)
			}
		}, false},
		{"a difference of every page", func(w *qemufile.Writer, round int) {
			for i := range uint64(n) {
				w.PutBE64(i*PageSize | flagXBZRLE)
				w.PutCountedString("ram")
				w.Write([]byte{1, 0, 4, 5, 2, 0xaa, 0xbb})
			}
		}, true},
		{"other pages in each checkpoint", func(w *qemufile.Writer, round int) {
			for i := range uint64(limit) {
				w.PutBE64((uint64(round)*limit+i)*PageSize | flagPage)
				w.PutCountedString("ram")
				w.Write(page(3))
			}
		}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, sec, _, c, _ := stagedPair(t, n, SaverConfig{}, CacheConfig{MaxStaged: limit*PageSize + 100})
			for round := range 5 {
				before := sec.snapshot()
				dirtyList(t, c)
				err := loadBytes(c, body(t, func(w *qemufile.Writer) {
					x.send(w, round)
					w.PutBE64(flagEOS)
				}))
				if m := c.Memory(); m > limit*PageSize {
					t.Fatalf("%d pages are held, at most %d", m/PageSize, limit)
				}
				wantMemory(t, "before Flush", sec, before)
				if !x.full {
					if err != nil {
						t.Fatal(err)
					}
					flush(t, c)
					continue
				}
				if !errors.Is(err, ErrStagedFull) {
					t.Fatalf("LoadState = %v", err)
				}
				if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
					t.Fatalf("Flush = %v", err)
				}
				return
			}
		})
	}
}

func TestAPageFromElsewhereIsRefusedWhereThereIsNoRoom(t *testing.T) {
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{MaxStaged: PageSize})
	want := sec.snapshot()
	if err := c.StagePage("ram", 0, page(9)); err != nil {
		t.Fatal(err)
	}
	if err := c.StagePage("ram", PageSize, page(9)); !errors.Is(err, ErrStagedFull) {
		t.Errorf("StagePage = %v", err)
	}
	if err := c.StagePage("ram", PageSize, nil); err != nil {
		t.Errorf("zeros take no memory: %v", err)
	}
	flush(t, c)
	copy(want[0], page(9))
	clear(want[0][PageSize : 2*PageSize])
	wantMemory(t, "after Flush", sec, want)
}

// refuse has the kernel take no memory back.
func refuse([]byte) error { return errors.New("locked") }

func TestMemoryThatIsNotTakenBackStaysHeldAndHarmsNothing(t *testing.T) {
	prim, sec, s, c, l := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	give := c.only.give
	c.only.give = refuse
	for i := range 3 {
		prim.write(0, i*PageSize, 200)
	}
	checkpoint(t, prim, sec, s, c, l)
	checkpoint(t, prim, sec, s, c, l)
	if err := c.Settle(); err != nil {
		t.Errorf("Settle = %v", err)
	}
	if m := c.Memory(); m != 3*PageSize {
		t.Errorf("%d bytes are held, and 3 pages were not taken back", m)
	}
	// A copy finds zeros where nothing was put, whatever lies there.
	c.NewSession()
	if m := c.Memory(); m != 3*PageSize {
		t.Errorf("%d bytes are held by a new session", m)
	}
	clear(sec.blocks[0].Host)
	if err := c.KeepCopy(); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	delta := unhex(t, "0000000000001040 03 72616d 01 0004 0502aabb"+eosHex)
	if err := loadBytes(c, delta); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	want := [][]byte{make([]byte, 8*PageSize)}
	want[0][PageSize+5], want[0][PageSize+6] = 0xaa, 0xbb
	wantMemory(t, "after a difference from zeros", sec, want)
	c.only.give = give
	c.Discard()
	if m := c.Memory(); m != 0 {
		t.Errorf("%d bytes are held after all was taken back", m)
	}
}

func TestAWriteAfterTheListIsFoundBeforeTheCommit(t *testing.T) {
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	dirtyList(t, c)
	sec.write(0, 3*PageSize, 9) // a device, say
	if err := c.CheckStaged(); !errors.Is(err, ErrNotResent) {
		t.Errorf("CheckStaged = %v", err)
	}
	sec.fail = errors.New("boom")
	if err := c.CheckStaged(); !errors.Is(err, sec.fail) {
		t.Errorf("CheckStaged with a broken log = %v", err)
	}
}

// A peer that sends a page and makes it zeros, again and again, at the bound: each
// gives its own memory back, and nothing looks for more than once.
func TestAPageThatBecomesZerosGivesItsMemoryBack(t *testing.T) {
	_, _, _, c, _ := stagedPair(t, 64, SaverConfig{}, CacheConfig{MaxStaged: 4 * PageSize})
	stage := func(i uint64, p []byte) {
		t.Helper()
		if err := c.StagePage("ram", i*PageSize, p); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(3) {
		stage(i, page(1))
	}
	for i := uint64(3); i < 64; i++ {
		stage(i, page(1))
		if m := c.Memory(); m != 4*PageSize {
			t.Fatalf("%d bytes are held of 4 pages", m)
		}
		stage(i, nil)
		if m := c.Memory(); m != 3*PageSize {
			t.Fatalf("%d bytes are held of 3 pages and one that became zeros", m)
		}
	}
	// Memory that is not taken back: one look at all of it for each checkpoint.
	calls := 0
	c.only.give = func([]byte) error { calls++; return errors.New("locked") }
	stage(3, page(1))
	stage(3, nil)
	for i := range uint64(20) {
		if err := c.StagePage("ram", (40+i)*PageSize, page(1)); !errors.Is(err, ErrStagedFull) {
			t.Fatalf("StagePage = %v", err)
		}
	}
	if calls != 2 { // the page's own, and one look
		t.Errorf("the kernel was asked %d times", calls)
	}
}

// FuzzStagedOnly gives a cache that keeps a copy and one that does not the same
// bytes at a checkpoint: they take the same, and make the same of it.
func FuzzStagedOnly(f *testing.F) {
	f.Add(slices.Concat(unhex(f, "0000000000001008 03 72616d"), page(1), unhex(f, "0000000000001022 00 0000000000001060 01 0004 0502aabb"+eosHex)), byte(0))
	f.Add(unhex(f, "0000000000002040 03 72616d 01 0004 0502aabb"+eosHex), byte(1))
	f.Add(unhex(f, "0000000000002002 03 72616d 55"+eosHex), byte(4))
	f.Add(slices.Concat(compressed(f, 0x2000, deflated(f, page(2))), unhex(f, eosHex)), byte(0))
	f.Add(unhex(f, "0000000000004004 03 72616d 0000000000004000"+eosHex), byte(15))
	twins := [2]*guest{newGuest(f, pages(f, "ram", 4)), newGuest(f, pages(f, "ram", 4))}
	f.Fuzz(func(t *testing.T, in []byte, own byte) {
		var errs, flushed [2]error
		for i, g := range twins {
			for k := range 4 {
				copy(g.blocks[0].Host[k*PageSize:], page(byte(k)))
			}
			c, err := NewCache(g.blocks, g, CacheConfig{StagedOnly: i == 1})
			if errors.Is(err, errors.ErrUnsupported) {
				t.Skip(err)
			}
			defer c.Close()
			c.Resent()
			flush(t, c)
			for k := range 4 {
				if own>>k&1 != 0 {
					g.write(0, k*PageSize+100, 9)
				}
			}
			r := reader(in)
			for errs[i] == nil && r.Offset() < int64(len(in)) {
				errs[i] = c.LoadState(r, Version)
			}
			flushed[i] = c.Flush()
		}
		if errors.Is(errs[1], ErrNotResent) || errors.Is(flushed[1], ErrNotResent) {
			return // what only a copy can do
		}
		if fmt.Sprint(errs[0]) != fmt.Sprint(errs[1]) || fmt.Sprint(flushed[0]) != fmt.Sprint(flushed[1]) {
			t.Fatalf("with a copy %v, %v; without %v, %v", errs[0], flushed[0], errs[1], flushed[1])
		}
		wantMemory(t, "without a copy", twins[1], twins[0].snapshot())
	})
}
