package ram

import (
	"math/bits"
	"sync"
)

// With CacheConfig.Overlap the first Flush of a session does not copy all memory after the
// last byte has come: what a section has brought is put into the guest's memory while the next
// section is received. Nothing waits for that, and nothing depends on it: a page that comes
// again meanwhile counts as staged, so that Flush copies it, whatever of it was copied before.

const (
	// overlapLeast is how many pages are worth a goroutine.
	overlapLeast = 64
	// overlapMost bounds the list of pages, whatever a peer sends in one section: the rest is
	// left to Flush.
	overlapMost = 64 << 10
)

// overlap is what a Cache has received of an initial synchronisation and not put in place. It
// belongs to the goroutine that calls the Cache, but for batch while helper runs.
type overlap struct {
	on     bool // pages are being listed; changes only in sections without pages beside the stream
	fresh  []stagedPage
	batch  []stagedPage // what helper puts in place
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
	for i := range o.batch {
		p := &o.batch[i]
		b := &c.blocks[p.block]
		p.data = b.data.Has(int(p.page))
		b.staged.Clear(int(p.page))
		if b.placed == nil {
			b.placed = NewBitmap(len(b.Host) / PageSize)
		}
		b.placed.Set(int(p.page))
	}
	o.helper.Go(func() {
		for _, p := range o.batch {
			c.blocks[p.block].put(int(p.page), p.data)
		}
	})
}

// staged is called with each page that is staged. One by which the peer's block is longer is
// left to Flush: the guest hears of it there, and its memory may not be touched before.
func (o *overlap) staged(b *cacheBlock, page int) {
	if o.on && len(o.fresh) < overlapMost && uint64(page) < b.told/PageSize {
		o.fresh = append(o.fresh, stagedPage{block: int32(b.number), page: uint64(page)})
	}
}

// end ends a section.
func (o *overlap) end() {
	if o.on {
		o.on = false
		o.helper.Wait()
	}
}

// drop forgets it all.
func (o *overlap) drop(c *Cache) {
	o.fresh, o.batch = nil, nil
	for i := range c.blocks {
		c.blocks[i].placed = nil
	}
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
