package ram

import (
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/mapping"
)

// haveMemory returns how many pages of the cache have memory.
func haveMemory(t *testing.T, c *Cache) (pages int) {
	t.Helper()
	for i := range c.blocks {
		n, err := mapping.Resident(c.blocks[i].page)
		if err != nil {
			t.Fatal(err)
		}
		pages += n
	}
	return pages
}

// A run of data has memory taken for what may follow it, in its block, and what did not
// follow has given it back when the synchronisation is complete, or broken.
func TestMemoryTakenAheadIsGivenBackWhereNothingCame(t *testing.T) {
	t.Parallel()
	probe, err := mapping.NewSparse(PageSize)
	if err != nil {
		t.Skip(err)
	}
	defer mapping.Free(probe)
	if unix.Madvise(probe, unix.MADV_POPULATE_WRITE) != nil {
		t.Skip("a kernel before 5.14")
	}
	for _, broken := range []bool{false, true} {
		prim := newGuest(t, pages(t, "ram", 3000), pages(t, "rom", 200))
		sec := prim.twin(t)
		r := rand.New(rand.NewPCG(3, 5))
		const data = 700 // and zeros after them, but for the last page
		for i := range 3000 {
			if i < data || i == 2999 {
				copy(prim.blocks[0].Host[i*PageSize:], randomPage(r))
			}
		}
		l := newLink(t)
		s := NewSaver(prim.blocks, prim, SaverConfig{IterateBytes: 100 * PageSize})
		c := newCache(t, sec, CacheConfig{Overlap: true})
		for i := range c.blocks { // a page costs a page
			if err := unix.Madvise(c.blocks[i].page, unix.MADV_NOHUGEPAGE); err != nil {
				t.Log(err)
			}
		}
		l.setup(s)
		l.load(c)
		var ahead []int
		for done := false; !done; {
			done = l.iterate(s)
			l.load(c)
			came := 0
			for i := range c.blocks {
				for page := range len(c.blocks[i].Host) / PageSize {
					if c.blocks[i].data.Has(page) {
						came++
					}
				}
			}
			ahead = append(ahead, haveMemory(t, c)-came)
		}
		if most := slices.Max(ahead); most < 100 || most > data {
			t.Errorf("memory was taken ahead for %d pages at most, after runs of about 100", most)
		}
		if broken {
			c.Discard()
		} else {
			l.complete(s)
			l.load(c)
			flush(t, c)
			wantSame(t, "flushed", sec, prim)
		}
		if n := haveMemory(t, c); n != data+1 {
			t.Errorf("broken %v: %d pages of the cache have memory, where %d hold something", broken, n, data+1)
		}
	}
}

// What a peer sends out of order, or over and over, takes no memory ahead of it.
func TestPagesThatAreScatteredHaveNoMemoryTakenAhead(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 4000))
	c := newCache(t, prim.twin(t), CacheConfig{Overlap: true})
	for name, page := range map[string]func(i int) int{
		"every other one":  func(i int) int { return 2 * i },
		"downwards":        func(i int) int { return 3999 - i },
		"of two places":    func(i int) int { return i/2 + i%2*2000 },
		"at the very end":  func(i int) int { return 3900 + i },
		"then one far off": func(i int) int { return (i + i/99*1000) % 4000 },
	} {
		o := &c.overlap
		o.batch = o.batch[:0]
		for i := range 100 {
			o.batch = append(o.batch, stagedPage{data: true, page: uint64(page(i))})
		}
		if _, from, to := o.foresee(c); from < to {
			t.Errorf("%s: memory is taken for pages %d to %d", name, from, to)
		}
	}
	o := &c.overlap
	o.batch = o.batch[:0]
	for i := range 100 {
		o.batch = append(o.batch, stagedPage{data: i%2 == 0, page: uint64(i)})
	}
	if _, from, to := o.foresee(c); from < to {
		t.Errorf("half zeros: memory is taken for pages %d to %d", from, to)
	}
	for i := range o.batch {
		o.batch[i].data = true
	}
	if _, from, to := o.foresee(c); from != 100 || to != 300 {
		t.Errorf("a run of 100 pages of data: memory is taken for pages %d to %d", from, to)
	}
	if _, from, to := o.foresee(c); from < to {
		t.Errorf("once more: memory is taken for pages %d to %d", from, to)
	}
}
