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
// Most of what a page costs is two faults, with which the kernel takes memory for it: one in
// the cache and one in the guest. So memory is taken for many pages at a time, which is
// cheaper. In the cache it is taken before the pages come, if pages of data have come one after
// the other.

const (
	// overlapLeast is the least number of pages for which a goroutine is started.
	overlapLeast = 64
	// overlapMost bounds the list of pages, whatever a peer sends in one section: the rest is
	// left to Flush.
	overlapMost = 64 << 10
	// overlapChunk is how many pages are put in place at a time.
	overlapChunk = 32
	// overlapAhead bounds for how many pages memory is taken before they come.
	overlapAhead = 2048
)

// overlap holds what a Cache has received of an initial synchronisation and not put in place. It
// belongs to the goroutine that calls the Cache, but for batch while helper runs.
type overlap struct {
	on     bool // pages are being listed; changes only in sections without pages beside the stream
	fresh  []stagedPage
	batch  []stagedPage // what helper copies into the guest; end copies what is left of it
	next   atomic.Int64 // index in batch of the first page that nobody has begun to copy
	helper sync.WaitGroup
}

// stagedPage is a page of a block.
type stagedPage struct {
	block int32
	data  bool // its contents may be other than zeros
	page  uint64
}

// begin is called at the start of a section. It starts the helper that copies the pages of
// earlier sections into the guest while this one is received; the caller calls end when it
// has been. Where pages come over channels begin does nothing and leaves o as it is, because
// the channels' goroutines read on.
func (o *overlap) begin(c *Cache) {
	if c.beside != nil || c.only.on || c.void || !c.cfg.Overlap || !c.first {
		return
	}
	o.on = true
	if len(o.fresh) < overlapLeast {
		return
	}
	o.fresh, o.batch = o.batch[:0], o.fresh
	once := o.batch[:0] // two goroutines may copy from batch, so no page is in it twice
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

// foresee returns the block and the pages of the cache for which begin takes memory early.
// If batch is one run of pages with data, these are the pages behind the run, which this
// section and the next may bring; otherwise there are none.
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

// put copies the pages of batch into the guest. Two goroutines may call it at a time: each
// takes the next chunk that nobody has begun.
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

// run reports whether all pages of chunk have data and follow one another in one block, and
// returns the first.
func run(chunk []stagedPage) (first stagedPage, ok bool) {
	first = chunk[0]
	for i, p := range chunk {
		if !p.data || p.block != first.block || p.page != first.page+uint64(i) {
			return first, false
		}
	}
	return first, true
}

// populate takes memory for the pages from up to to of mem, the memory of the cache or of the
// guest.
func (b *cacheBlock) populate(mem []byte, from, to int) {
	mapping.Populate(mem[from*PageSize : to*PageSize])
}

// staged is called with each page that is staged, before the cache is written to. It leaves
// to Flush a page beyond the length at which the guest knows the block: Flush tells the guest
// of the new length, and only then may that memory be touched.
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

// end is called when a section has been received. It returns when all of batch is in the
// guest.
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

// drop forgets the pages that are listed and placed, and frees the memory that was taken for
// pages that did not come.
func (o *overlap) drop(c *Cache) {
	o.fresh, o.batch = nil, nil
	for i := range c.blocks {
		b := &c.blocks[i]
		b.placed, b.placing = nil, nil
		b.giveBack()
	}
}

// giveBack frees the memory that was taken early for pages of the cache that hold no data.
// Memory that is locked may stay.
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

// taken returns how many pages Flush need not copy because they are in the guest already, and
// drops the lists.
func (o *overlap) taken(c *Cache) (pages uint64) {
	for i := range c.blocks {
		for _, word := range c.blocks[i].placed {
			pages += uint64(bits.OnesCount64(word))
		}
	}
	o.drop(c)
	return pages
}

// put copies a page of the cache into the guest; data false means that it is zeros.
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
