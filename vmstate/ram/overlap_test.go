package ram

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// overlapping sends the memory of prim in sections of about so many pages, while the guest
// writes, and calls look after each section.
func overlapping(t *testing.T, prim, sec *guest, cfg CacheConfig, pages int, look func()) (*link, *Saver, *Cache) {
	t.Helper()
	l := newLink(t)
	s := NewSaver(prim.blocks, prim, SaverConfig{IterateBytes: pages * PageSize})
	c := newCache(t, sec, cfg)
	r := rand.New(rand.NewPCG(4, 5))
	l.setup(s)
	l.load(c)
	for done := false; !done; {
		done = l.iterate(s)
		l.load(c)
		look()
	}
	for range 4 {
		prim.scribble(r, 150)
		s.Pending(true)
		for done := false; !done; {
			done = l.iterate(s)
			l.load(c)
			look()
		}
	}
	prim.scribble(r, 100)
	l.complete(s)
	l.load(c)
	return l, s, c
}

func filled(t *testing.T) (prim, sec *guest) {
	t.Helper()
	prim = newGuest(t, pages(t, "ram", 700), pages(t, "rom", 300))
	sec = prim.twin(t)
	r := rand.New(rand.NewPCG(2, 3))
	for _, g := range []*guest{prim, sec} { // what the secondary has had is of no account
		for _, b := range g.blocks {
			for i := 0; i < len(b.Host); i += PageSize {
				if r.IntN(4) > 0 {
					copy(b.Host[i:], randomPage(r))
				}
			}
		}
	}
	return prim, sec
}

// The pages of a section are in the guest's memory when the next section has been received,
// but for those that come a second time, and those of the last section: these are put there
// by Flush. After it the cache is as it would be without an overlap.
func TestMemoryIsPutInPlaceWhileMoreComes(t *testing.T) {
	t.Parallel()
	prim, sec := filled(t)
	sections, inPlace := 0, 0
	_, _, c := overlapping(t, prim, sec, CacheConfig{Overlap: true}, 100, func() {
		if sections++; sections == 5 {
			for i := 0; i < 700; i++ {
				if bytes.Equal(sec.blocks[0].Host[i*PageSize:][:PageSize], prim.blocks[0].Host[i*PageSize:][:PageSize]) {
					inPlace++
				}
			}
		}
	})
	if inPlace < 300 || inPlace > 600 {
		t.Errorf("%d pages are in place after 5 sections of about 100", inPlace)
	}
	flush(t, c)
	want := prim.snapshot()
	wantMemory(t, "flushed", sec, want)
	if n := c.Stats().Flushed; n != 1000 {
		t.Errorf("Flushed = %d", n)
	}
	// Whatever its guest writes, it is rolled back to the same.
	sec.scribble(rand.New(rand.NewPCG(6, 7)), 2000)
	flush(t, c)
	wantMemory(t, "rolled back", sec, want)
}

func TestWithoutOverlapTheGuestIsUntouchedUntilFlush(t *testing.T) {
	t.Parallel()
	prim, sec := filled(t)
	was := sec.snapshot()
	_, _, c := overlapping(t, prim, sec, CacheConfig{}, 100, func() { wantMemory(t, "received", sec, was) })
	flush(t, c)
	wantSame(t, "flushed", sec, prim)
}

// After the first Flush pages reach the guest's memory in Flush and not before.
func TestOverlapEndsWithTheFirstFlush(t *testing.T) {
	t.Parallel()
	prim, sec := filled(t)
	l, s, c := overlapping(t, prim, sec, CacheConfig{Overlap: true}, 100, func() {})
	flush(t, c)
	was := sec.snapshot()
	prim.scribble(rand.New(rand.NewPCG(8, 9)), 900)
	s.Pending(true)
	for done := false; !done; {
		done = l.iterate(s)
		l.load(c)
		wantMemory(t, "a checkpoint comes", sec, was)
	}
	l.complete(s)
	l.load(c)
	wantMemory(t, "a checkpoint has come", sec, was)
	flush(t, c)
	wantSame(t, "it is flushed", sec, prim)
}

// A synchronisation that breaks is followed by another, of another guest.
func TestASynchronisationThatBreaksLeavesNothingToTheNext(t *testing.T) {
	t.Parallel()
	prim, sec := filled(t)
	_, _, c := overlapping(t, prim, sec, CacheConfig{Overlap: true}, 100, func() {})
	if err := loadBytes(c, []byte{0, 0, 0, 0, 0, 0, 0, 0x08, 1}); err == nil {
		t.Fatal("a page of no block was taken")
	}
	c.Discard()
	c.NewSession()
	other := newGuest(t, pages(t, "ram", 700), pages(t, "rom", 300))
	copy(other.blocks[0].Host[650*PageSize:], page(7))
	l := newLink(t)
	l.sync(NewSaver(other.blocks, other, SaverConfig{IterateBytes: 100 * PageSize}), c)
	wantSame(t, "the second", sec, other)
}

// A page that comes in one section and again in the next, while it is put in place, is what
// it was last; and a peer that sends one page for ever has no long list made of it.
func TestAPageThatComesAgainIsWhatItWasLast(t *testing.T) {
	t.Parallel()
	sec := newGuest(t, pages(t, "ram", 128))
	c := newCache(t, sec, CacheConfig{Overlap: true})
	section := func(n int, fill func(i int) byte) []byte {
		return body(t, func(w *qemufile.Writer) {
			for i := range n {
				word := uint64(i%128)*PageSize | flagZero
				if i > 0 {
					word |= flagContinue
				}
				w.PutBE64(word)
				if i == 0 {
					w.PutCountedString("ram")
				}
				w.PutByte(fill(i))
			}
			w.PutBE64(flagEOS)
		})
	}
	for round, n := range []int{128, 128, 2*overlapMost + 128, 128} {
		if err := loadBytes(c, section(n, func(i int) byte { return byte((i%128 + round) % 3) })); err != nil {
			t.Fatal(err)
		}
		if cap(c.overlap.fresh) > 2*overlapMost {
			t.Fatalf("a list of %d pages", cap(c.overlap.fresh))
		}
	}
	flush(t, c)
	for i := range 128 {
		if b := sec.blocks[0].Host[i*PageSize]; b != byte((i+3)%3) {
			t.Fatalf("page %d is %d", i, b)
		}
	}
}

// Where the peer's block is longer, the memory by which it is longer is written in Flush,
// after Resize was called, and not before.
func TestWhatABlockGrowsByIsNotTouchedBefore(t *testing.T) {
	const now, then = 200, 500
	prim := newGuest(t, Block{Name: "ram", Host: newMemory(t, then*PageSize)})
	b := Block{Name: "ram", Host: newMemory(t, then*PageSize), Used: now * PageSize, Resizable: true}
	for i := range then {
		copy(prim.blocks[0].Host[i*PageSize:], page(byte(i)|1))
	}
	grown := false
	b.Resize = func(n uint64) error {
		if n != then*PageSize || !bytes.Equal(b.Host[now*PageSize:], make([]byte, (then-now)*PageSize)) {
			t.Error("its memory was touched before it heard of it")
		}
		grown = true
		return nil
	}
	sec := newGuest(t, b)
	_, _, c := overlapping(t, prim, sec, CacheConfig{Overlap: true}, 100, func() {})
	flush(t, c)
	wantSame(t, "flushed", sec, prim)
	if !grown {
		t.Error("it has not heard of it")
	}
}

// A page that a section brings many times is put in place once: two goroutines that put
// pages in place would write the same memory.
func TestAPageThatComesTwiceInASectionIsPutInPlaceOnce(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 400))
	c := newCache(t, prim.twin(t), CacheConfig{Overlap: true})
	o := &c.overlap
	o.on = true
	for range 3 {
		for i := range 200 {
			if err := c.StagePage("ram", uint64(i*PageSize), prim.blocks[0].Host[i*PageSize:][:PageSize]); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.begin(c)
	n := len(o.batch)
	o.end(c)
	if n != 200 {
		t.Errorf("%d pages are put in place, and 200 have come three times", n)
	}
}

// A page that comes again while its staged copy may be on its way to the guest overwrites that
// copy only afterwards. Otherwise one goroutine would read memory that another writes, which
// the race detector reports where the memory is Go's own.
func TestAPageThatComesAgainIsReceivedWhenItIsInPlace(t *testing.T) {
	t.Parallel()
	const n = 2000
	sec := newGuest(t, pages(t, "ram", n))
	c := newCache(t, sec, CacheConfig{Overlap: true})
	b := &c.blocks[0]
	mapped := b.page
	b.page = make([]byte, len(mapped)) // memory that the race detector knows
	defer func() { b.page = mapped }()
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		c.overlap.begin(c)
		for i := range n {
			if err := c.StagePage("ram", uint64(i*PageSize), page(byte(round+i)|1)); err != nil {
				t.Fatal(err)
			}
			if i > 0 || round == 0 {
				continue
			}
			for j := range n {
				if got, want := b.Host[j*PageSize], byte(round-1+j)|1; got != want {
					t.Fatalf("round %d: page %d is %d in the guest, not %d, and page 0 comes again", round, j, got, want)
				}
			}
		}
		c.overlap.end(c)
	}
	flush(t, c)
	for i := range n {
		if got, want := b.Host[i*PageSize], byte(rounds-1+i)|1; got != want {
			t.Fatalf("page %d is %d, not %d", i, got, want)
		}
	}
}
