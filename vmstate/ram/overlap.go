package ram

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/gocolo/lockstep/internal/mapping"
)

// With CacheConfig.Overlap the first Flush of a session does not copy all memory after the
// last byte has come: what a section has brought is put into the guest's memory while the next
// section is received. Nothing waits for that, and nothing depends on it: a page that comes
// again meanwhile counts as staged, so that Flush copies it, whatever of it was copied before.
//
// Most of what a page costs is the fault with which memory is taken for it, twice: in the cache
// and in the guest. It is taken for many pages at a time, which is cheaper, and for the cache
// before they come, where pages of data have come one after the other up to there.

const (
	// overlapLeast is how many pages are worth a goroutine.
	overlapLeast = 64
	// overlapMost bounds the list of pages, whatever a peer sends in one section: the rest is
	// left to Flush.
	overlapMost = 64 << 10
	// overlapChunk is how many pages are put in place at a time.
	overlapChunk = 32
	// overlapAhead bounds for how many pages memory is taken before they come.
	overlapAhead = 2048
)

// overlap is what a Cache has received of an initial synchronisation and not put in place. It
// belongs to the goroutine that calls the Cache, but for batch while helper runs.
type overlap struct {
	on     bool // pages are being listed; changes only in sections without pages beside the stream
	fresh  []stagedPage
	batch  []stagedPage // what is put in place by helper, and in the end by whoever waits for that
	next   atomic.Int64 // in batch: from there on nobody has begun
	helper sync.WaitGroup
}

// stagedPage is a page of a block.
type stagedPage struct {
	block int32
	data  bool // it may hold something else than zeros
	page  uint64
}

// begin begins a section: what earlier ones have brought is put in place meanwhile. The
// caller calls end when it has received it. Where pages come beside the stream there is
// nothing to begin, and nothing is changed: those who bring them look at on.
func (o *overlap) begin(c *Cache) {
	if c.beside != nil || c.only.on || c.void || !c.cfg.Overlap || !c.first {
		return
	}
	o.on = true
	if len(o.fresh) < overlapLeast {
		return
	}
	o.fresh, o.batch = o.batch[:0], o.fresh
	once := o.batch[:0] // two may put it in place, and no page is for both
	for _, p := range o.batch {
		b := &c.blocks[p.block]
		if !b.staged.Has(int(p.page)) {
			continue
		}
		p.data = b.data.Has(int(p.page))
		b.staged.Clear(int(p.page))
		if b.placed == nil {
			b.placed = NewBitmap(len(b.Host) / PageSize)
		}
		b.placed.Set(int(p.page))
		if b.placing == nil {
			b.placing = NewBitmap(len(b.Host) / PageSize)
		}
		b.placing.Set(int(p.page))
		once = append(once, p)
	}
	o.batch = once
	b, from, to := o.foresee(c)
	o.next.Store(0)
	o.helper.Go(func() {
		for ; from < to; from += overlapChunk {
			b.populate(b.page, from, min(from+overlapChunk, to))
		}
		o.put(c)
	})
}

// foresee returns for which pages of a block of the cache memory is to be taken: those that
// the section that begins and the next may bring, where batch is a run of data. Otherwise it
// returns none.
func (o *overlap) foresee(c *Cache) (b *cacheBlock, from, to int) {
	n := len(o.batch)
	if n == 0 {
		return nil, 0, 0
	}
	last := o.batch[n-1]
	data := 0
	for _, p := range o.batch {
		if p.data && p.block == last.block && last.page-p.page < uint64(n) { // and so not after it
			data++
		}
	}
	b = &c.blocks[last.block]
	if data < n-n/8 {
		return b, 0, 0
	}
	from = int(last.page) + 1
	to = min(from+min(2*n, overlapAhead), int(b.told/PageSize))
	if b.ahead == nil {
		b.ahead = NewBitmap(len(b.Host) / PageSize)
	}
	for from < to && b.ahead.Has(from) {
		from++
	}
	for i := from; i < to; i++ {
		b.ahead.Set(i)
	}
	return b, from, to
}

// put puts batch in place, side by side with whoever else calls it.
func (o *overlap) put(c *Cache) {
	for {
		from := int(o.next.Add(overlapChunk)) - overlapChunk
		if from >= len(o.batch) {
			return
		}
		chunk := o.batch[from:min(from+overlapChunk, len(o.batch))]
		if first, ok := run(chunk); ok {
			b := &c.blocks[first.block]
			b.populate(b.Host, int(first.page), int(first.page)+len(chunk))
		}
		for _, p := range chunk {
			c.blocks[p.block].put(int(p.page), p.data)
		}
	}
}

// run reports whether pages of data follow one another, and returns the first.
func run(chunk []stagedPage) (first stagedPage, ok bool) {
	first = chunk[0]
	for i, p := range chunk {
		if !p.data || p.block != first.block || p.page != first.page+uint64(i) {
			return first, false
		}
	}
	return first, true
}

// populate takes memory for the pages from one up to another of the cache or the guest.
func (b *cacheBlock) populate(mem []byte, from, to int) {
	mapping.Populate(mem[from*PageSize : to*PageSize])
}

// staged is called with each page that is staged, before the cache is written to. One by which
// the peer's block is longer is left to Flush: the guest hears of it there, and its memory may
// not be touched before.
func (o *overlap) staged(c *Cache, b *cacheBlock, page int) {
	if !o.on {
		return
	}
	if b.placing != nil && b.placing.Has(page) {
		o.finish(c)
	}
	if len(o.fresh) < overlapMost && uint64(page) < b.told/PageSize {
		o.fresh = append(o.fresh, stagedPage{block: int32(b.number), page: uint64(page)})
	}
}

// end ends a section.
func (o *overlap) end(c *Cache) {
	if o.on {
		o.on = false
		o.finish(c)
	}
}

// finish returns when batch is in place, and nobody reads the cache any more.
func (o *overlap) finish(c *Cache) {
	o.put(c)
	o.helper.Wait()
	for _, p := range o.batch {
		c.blocks[p.block].placing.Clear(int(p.page))
	}
	o.batch = o.batch[:0]
}

// drop forgets it all, and gives back the memory that was taken for pages that did not come.
func (o *overlap) drop(c *Cache) {
	o.fresh, o.batch = nil, nil
	for i := range c.blocks {
		b := &c.blocks[i]
		b.placed, b.placing = nil, nil
		b.giveBack()
	}
}

// giveBack gives back what was taken of the cache and holds nothing. Memory that is locked
// may stay.
func (b *cacheBlock) giveBack() {
	from, pages := 0, len(b.Host)/PageSize
	for i := 0; b.ahead != nil && i <= pages; i++ {
		if i < pages && b.ahead.Has(i) && !b.data.Has(i) {
			continue
		}
		if from < i {
			_ = mapping.Release(b.page[from*PageSize : i*PageSize])
		}
		from = i + 1
	}
	b.ahead = nil
}

// taken returns how many pages Flush finds in place, and forgets it all.
func (o *overlap) taken(c *Cache) (pages uint64) {
	for i := range c.blocks {
		for _, word := range c.blocks[i].placed {
			pages += uint64(bits.OnesCount64(word))
		}
	}
	o.drop(c)
	return pages
}

// put makes a page of the cache the guest's.
func (b *cacheBlock) put(page int, data bool) {
	off := page * PageSize
	guest := b.Host[off : off+PageSize : off+PageSize]
	switch {
	case data:
		copy(guest, b.page[off:off+PageSize])
	case !isZero(guest):
		clear(guest)
	}
}
