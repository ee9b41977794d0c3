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

// checkpoint makes one, and returns how many pages it was of.
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
	const n = 4096
	prim, sec, s, c, l := stagedPair(t, n, SaverConfig{}, CacheConfig{})
	for i := range n {
		prim.write(0, i*PageSize, 0xaa, byte(i))
	}
	checkpoint(t, prim, sec, s, c, l)
	if m := c.Memory(); m != n*PageSize {
		t.Fatalf("%d pages are held of a checkpoint of %d", m/PageSize, n)
	}
	prim.write(0, 0, 1)
	checkpoint(t, prim, sec, s, c, l)
	if m := c.Memory(); m != n*PageSize {
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

func TestWithAPeerThatSendsNothingAgainACopyIsKept(t *testing.T) {
	prim := newGuest(t, pages(t, "a", 50), pages(t, "b", 3))
	r := rand.New(rand.NewPCG(4, 4))
	prim.scribble(r, 60)
	sec := prim.twin(t)
	sec.scribble(r, 60)
	s, c, l := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 1 << 20}), kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, sec, CacheConfig{}), newLink(t)
	for range 2 { // two sessions
		l.setup(s)
		for !l.iterate(s) {
		}
		l.complete(s)
		l.load(c)
		if c.KeepsCopy() {
			t.Fatal("a session begins with a copy")
		}
		if err := c.KeepCopy(); err != nil || !c.KeepsCopy() {
			t.Fatal(err)
		}
		flush(t, c)
		wantMemory(t, "after the initial synchronisation", sec, prim.snapshot())
		if c.Memory() == 0 {
			t.Error("the copy takes no memory")
		}
		for range 10 {
			prim.scribble(r, 20)
			sec.scribble(r, 20)
			if list := dirtyList(t, c); len(list) != 1 {
				t.Errorf("a list of %d bytes of a cache that keeps a copy", len(list))
			}
			capture(t, s)
			want := prim.snapshot()
			l.complete(s)
			l.load(c)
			flush(t, c)
			wantMemory(t, "after a checkpoint", sec, want)
		}
		if err := c.KeepCopy(); err != nil {
			t.Errorf("a second call: %v", err)
		}
		c.NewSession()
		if c.Memory() != 0 {
			t.Error("a new session keeps the copy's memory")
		}
	}
}

func TestACopyIsNotKeptWhereItHasNoRoom(t *testing.T) {
	_, c := kind{cfg: CacheConfig{StagedOnly: true}}.one(t, 4, CacheConfig{MaxStaged: 4*PageSize - 1})
	if err := c.KeepCopy(); !errors.Is(err, ErrStagedFull) {
		t.Errorf("KeepCopy = %v", err)
	}
	flush(t, c)
	if err := c.KeepCopy(); !errors.Is(err, ErrDiscarded) {
		t.Errorf("KeepCopy after the first Flush = %v", err)
	}
}

func TestACopyIsKeptWhereNobodySaysThatThePrimarySendsAgain(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 8))
	prim.write(0, PageSize, page(3)...)
	sec := prim.twin(t)
	c, err := NewCache(sec.blocks, sec, CacheConfig{StagedOnly: true})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, l := NewSaver(prim.blocks, prim, SaverConfig{}), newLink(t)
	for session := range 2 {
		l.sync(s, c)
		sec.write(0, PageSize, page(9)...) // only here
		capture(t, s)
		l.complete(s)
		l.load(c)
		if err := c.Flush(); err != nil {
			t.Fatalf("session %d: %v", session, err)
		}
		wantMemory(t, "after a checkpoint", sec, prim.snapshot())
		c.NewSession() // forgets what was said
		if session == 0 {
			c.Resent()
			c.NewSession()
		}
	}
	small := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, sec.twin(t), CacheConfig{MaxStaged: PageSize})
	small.NewSession()
	if err := small.Flush(); !errors.Is(err, ErrStagedFull) {
		t.Errorf("Flush without room for a copy = %v", err)
	}
}

// longer is a guest of which only part is there until it is told of more, which
// then is zeros.
func longer(t testing.TB, used, all int) *guest {
	t.Helper()
	b := pages(t, "ram", all)
	b.Used, b.Resizable = uint64(used)*PageSize, true
	for i := range used {
		copy(b.Host[i*PageSize:], page(byte(100+i)))
	}
	for i := used; i < all; i++ {
		copy(b.Host[i*PageSize:], page(0xfe)) // whoever reads it finds no guest's
	}
	told := used
	b.Resize = func(n uint64) error {
		if now := int(n / PageSize); now > told {
			clear(b.Host[told*PageSize : now*PageSize])
		}
		told = int(n / PageSize)
		return nil
	}
	return newGuest(t, b)
}

// A block that is longer at the primary: the guest's memory beyond what it has is
// touched after it was told, and in no way before.
func TestABlockThatGrowsIsNotTouchedBeforeTheGuestHears(t *testing.T) {
	const used, all = 2, 7
	pageOf := func(w *qemufile.Writer, i uint64, p []byte) {
		w.PutBE64(i*PageSize | flagPage)
		w.PutCountedString("ram")
		w.Write(p)
	}
	list := func(w *qemufile.Writer) {
		w.PutBE64(all*PageSize | flagMemSize)
		w.PutCountedString("ram")
		w.PutBE64(all * PageSize)
	}
	grown := body(t, func(w *qemufile.Writer) {
		list(w)
		pageOf(w, 0, page(1))
		pageOf(w, 2, page(2))
		w.PutBE64(3*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(0)
		w.PutBE64(4*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(7)
		w.PutBE64(5*PageSize | flagXBZRLE)
		w.PutCountedString("ram")
		w.Write([]byte{1, 0, 4, 5, 2, 0xaa, 0xbb})
		// Came, and is zeros again.
		pageOf(w, 6, page(5))
		w.PutBE64(6*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(0)
		w.PutBE64(flagEOS)
	})
	delta := make([]byte, PageSize)
	delta[5], delta[6] = 0xaa, 0xbb
	want := [][]byte{slices.Concat(page(1), page(101), page(2), page(0), page(7), delta, page(0))}
	for _, resent := range []bool{true, false} {
		t.Run(fmt.Sprintf("resent %v", resent), func(t *testing.T) {
			g := longer(t, used, all)
			c := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, g, CacheConfig{})
			c.only.resent = resent
			if err := loadBytes(c, grown); err != nil {
				t.Fatal(err)
			}
			if !resent {
				if err := c.KeepCopy(); err != nil {
					t.Fatal(err)
				}
			}
			for i := used; i < all; i++ {
				if p := g.blocks[0].Host[i*PageSize:][:PageSize]; !slices.Equal(p, page(0xfe)) {
					t.Fatalf("page %d was written before the guest heard of it", i)
				}
			}
			flush(t, c)
			wantMemory(t, "after the first Flush", g, want)
			if n := c.Stats().Flushed; n != 6 {
				t.Errorf("Flushed = %d, want 6", n)
			}
			if resent {
				return
			}
			for i := range all { // all rolls back
				g.write(0, i*PageSize, 200)
			}
			flush(t, c)
			wantMemory(t, "rolled back", g, want)
			// A difference is from what is there.
			if err := loadBytes(c, unhex(t, "0000000000006040 03 72616d 01 0004 0502aabb"+eosHex)); err != nil {
				t.Fatal(err)
			}
			flush(t, c)
			after := [][]byte{slices.Concat(want[0][:6*PageSize], delta)}
			wantMemory(t, "after a difference", g, after)
		})
	}
	t.Run("at a checkpoint", func(t *testing.T) {
		g := longer(t, used, all)
		c := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, g, CacheConfig{})
		flush(t, c)
		dirtyList(t, c)
		if err := loadBytes(c, grown); err != nil {
			t.Fatal(err)
		}
		flush(t, c)
		wantMemory(t, "after Flush", g, want)
	})
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
	if n := testing.AllocsPerRun(10, func() {
		rd.ResetBytes(list)
		if err := s.LoadDirty(rd); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("LoadDirty: %v allocations", n)
	}
	w := qemufile.NewWriter(discard{})
	if n := testing.AllocsPerRun(10, func() {
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
