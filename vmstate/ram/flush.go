package ram

import (
	"math/bits"

	"github.com/gocolo/lockstep/internal/mapping"
)

// Flush puts what is staged into the guest's memory: it copies the pages received since
// the last Flush, and those that the secondary's guest dirtied itself, from the cache to
// the guest's memory. The guest is paused.
//
// The first Flush of a session copies everything received into the guest's memory,
// switches the dirty log on if it is a [LogSwitch], and takes what the peer did not send
// (memory the guest never had, a discarded area) from the guest into the cache: from then
// on the cache is what the guest is rolled back to. With CacheConfig.StagedOnly it takes
// nothing, if [Cache.Resent] was called in the session; otherwise it calls
// [Cache.KeepCopy], whose error it may return.
//
// If the dirty log fails the guest is unchanged and Flush may be called again. Flush
// returns [ErrDiscarded] when nothing valid is staged, and [ErrNotResent], with the guest
// unchanged, when the primary has not sent again a page that it has to
// (CacheConfig.StagedOnly).
func (c *Cache) Flush() error {
	if c.void || c.closed {
		return &Error{Op: "flush", Stream: -1, Err: ErrDiscarded}
	}
	if c.statsDone {
		c.stats, c.statsDone = CacheStats{}, false
	}
	if c.first && c.only.on && !c.only.resent {
		if err := c.KeepCopy(); err != nil {
			return err
		}
	}
	if err := c.readLog(); err != nil {
		return err
	}
	if err := c.only.check(c); err != nil {
		return err
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		if b.told == b.length {
			continue
		}
		if b.Resize != nil {
			if err := b.Resize(b.length); err != nil {
				c.unlogged = true
				return &Error{Op: "flush", Block: b.Name, Stream: -1, Err: err}
			}
		}
		b.told = b.length
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		if b.page == nil {
			continue
		}
		switch {
		case c.only.on:
			c.stats.Flushed += c.only.flush(c, b)
			continue
		case c.first && c.only.copied:
			b.takeMissing(b.only.had, len(b.Host)/PageSize)
		case c.first:
			b.takeMissing(0, len(b.Host)/PageSize)
		}
		c.stats.Flushed += b.flush()
	}
	c.only.flushed()
	c.stats.Flushed += c.overlap.taken(c)
	c.forget()
	c.fresh = !c.first && c.keep.on()
	c.first, c.statsDone = false, true
	return nil
}

// readLog adds what the secondary's guest dirtied to what is staged, for all blocks
// before any memory changes. Before the first Flush the guest did not have the state of
// the primary's guest, so the pages that it dirtied are of no use.
func (c *Cache) readLog() error {
	if c.log == nil {
		return nil
	}
	if sw, ok := c.log.(LogSwitch); ok && !c.logging {
		if err := sw.StartDirtyLog(); err != nil {
			return &Error{Op: "dirty log", Stream: -1, Err: err}
		}
		c.logging = true
	}
	c.keepWritten()
	for i := range c.blocks {
		b := &c.blocks[i]
		if b.page == nil {
			continue
		}
		dirty := b.staged
		switch {
		case c.first:
			dirty = NewBitmap(len(b.Host) / PageSize)
		case c.only.on:
			dirty = b.only.own
		case b.wrote != nil:
			dirty = b.wrote
		}
		if err := c.log.ReadDirty(b.Name, dirty); err != nil {
			c.unlogged = true
			return &Error{Op: "dirty log", Block: b.Name, Stream: -1, Err: err}
		}
		if !c.first && !c.only.on && b.wrote != nil {
			b.staged.Or(b.wrote)
		}
	}
	return nil
}

// flush copies the staged pages to the guest and returns how many they were.
func (b *cacheBlock) flush() (pages uint64) {
	b.staged.ClearRange(int(b.length/PageSize), 64*len(b.staged))
	for wi := range b.placed {
		b.placed[wi] &^= b.staged[wi] // it came again
	}
	for wi, word := range b.staged {
		if word == 0 {
			continue
		}
		data := b.data[wi]
		for m := word; m != 0; m &= m - 1 {
			bit := bits.TrailingZeros64(m)
			b.put(wi<<6|bit, data>>bit&1 != 0)
		}
		pages += uint64(bits.OnesCount64(word))
		b.staged[wi] = 0
	}
	return pages
}

// takeMissing copies pages that were not received, from one up to another, out of the
// guest's memory into the cache.
func (b *cacheBlock) takeMissing(from, to int) {
	to = min(to, int(b.length/PageSize))
	for wi, word := range b.staged {
		if b.placed != nil {
			word |= b.placed[wi]
		}
		for m := ^word; m != 0; m &= m - 1 {
			i := wi<<6 | bits.TrailingZeros64(m)
			if i < from {
				continue
			}
			if i >= to {
				return
			}
			off := i * PageSize
			guest := b.Host[off : off+PageSize : off+PageSize]
			switch {
			case !isZero(guest):
				copy(b.page[off:off+PageSize], guest)
				b.data.Set(i)
			case b.data.Has(i):
				clear(b.page[off : off+PageSize])
				b.data.Clear(i)
			}
		}
	}
}

// Discard makes what is staged void, because the link broke or the load failed. The guest's
// memory is what the last Flush made it and what the guest did since; with
// CacheConfig.StagedOnly or Overlap, and before the first Flush of a session, it is void,
// as part of the initial synchronisation may be in it. Discard switches the dirty log off
// if the cache switched it on, unless the cache can go on in another session
// ([Cache.Resumable]). The cache can be used again after NewSession, or when a peer begins
// with a block list.
func (c *Cache) Discard() {
	if c.suspend() {
		return
	}
	c.drop()
	c.void = true
	if c.logging {
		c.logging = false
		// There is nobody to tell, and nothing depends on it.
		_ = c.log.(LogSwitch).StopDirtyLog()
	}
}

// drop forgets what is staged and what belongs to the connection.
func (c *Cache) drop() {
	c.last = noBlock
	c.stats, c.statsDone = CacheStats{}, false
	for i := range c.blocks {
		b := &c.blocks[i]
		clear(b.staged)
		b.length = b.told
	}
	c.keepNone()
	c.only.drop(c)
	c.overlap.drop(c)
}

// Close discards what is staged and unmaps the cache. The guest's memory stays
// as it is. Closing twice is no error.
func (c *Cache) Close() error {
	if c.closed {
		return nil
	}
	c.cfg.Resumable = false
	c.Discard()
	c.closed = true
	return c.unmap()
}

// unmap frees the memory of all blocks and returns the first error.
func (c *Cache) unmap() error {
	var first error
	for i := range c.blocks {
		b := &c.blocks[i]
		if err := mapping.Free(b.page); err != nil && first == nil {
			first = &Error{Op: "block", Block: b.Name, Stream: -1, Err: err}
		}
		b.page = nil
	}
	return first
}
