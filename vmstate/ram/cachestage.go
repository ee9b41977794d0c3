package ram

import "math"

// stage takes a page's contents.
func (c *Cache) stage(b *cacheBlock, off uint64, data []byte) error {
	c.lock()
	defer c.unlock()
	page, err := c.place(b, off)
	if err == nil {
		c.stats.Pages++
		copy(page, data)
	}
	return err
}

// place returns the memory in which the contents of a page are to be staged.
// What that memory holds now may be anything; base is for a caller that needs
// the page as it was.
func (c *Cache) place(b *cacheBlock, off uint64) ([]byte, error) {
	i := int(off / PageSize)
	if c.only.on {
		return c.only.place(c, b, i)
	}
	b.staged.Set(i)
	b.data.Set(i)
	c.overlap.staged(c, b, i)
	return b.page[off : off+PageSize : off+PageSize], nil
}

// base does what place does, for a page that comes as a difference: the memory
// that it returns holds the page as it was received last.
func (c *Cache) base(b *cacheBlock, off uint64) ([]byte, error) {
	if c.only.on {
		return c.only.base(c, b, int(off/PageSize))
	}
	return c.place(b, off)
}

// fill stages a page of one byte.
func (c *Cache) fill(b *cacheBlock, off uint64, fill byte) error {
	if fill != 0 {
		page, err := c.place(b, off)
		for j := range page {
			page[j] = fill
		}
		return err
	}
	i := int(off / PageSize)
	b.staged.Set(i)
	c.overlap.staged(c, b, i)
	switch {
	case c.only.on:
		c.only.zero(c, b, i)
	case b.data.Has(i):
		b.data.Clear(i)
		clear(b.page[off : off+PageSize])
	}
	return nil
}

// StagePage stages a page that did not come in a ram section, but over a multifd
// channel or from elsewhere: PageSize bytes, or nil for zeros. offset is in the
// block, in bytes. The error is an [*Error] with [ErrUnknownBlock], [ErrOffset],
// [ErrIgnored], [ErrDiscarded] or [ErrStagedFull], and leaves what is staged as it
// was. Within a section of a cache that takes pages from a [PageReceiver] it may be
// called from several goroutines at a time.
func (c *Cache) StagePage(block string, offset uint64, page []byte) error {
	c.lock()
	defer c.unlock()
	i, ok := c.index[block]
	err := ErrUnknownBlock
	if ok {
		b := &c.blocks[i]
		switch {
		case c.void || c.closed:
			err = ErrDiscarded
		case b.page == nil:
			err = ErrIgnored
		case offset%PageSize != 0 || offset >= b.length || page != nil && len(page) != PageSize:
			err = ErrOffset
		default:
			c.only.trim(c)
			if c.statsDone {
				c.stats, c.statsDone = CacheStats{}, false
			}
			if page == nil {
				c.stats.Pages++
				c.stats.ZeroPages++
				return c.fill(b, offset, 0)
			}
			var dst []byte
			if dst, err = c.place(b, offset); err == nil {
				c.stats.Pages++
				c.stats.Bytes += PageSize
				copy(dst, page)
				return nil
			}
		}
	}
	return &Error{Op: "load", Block: block, Offset: offset, Stream: -1, Err: err}
}

// TakesEarly returns how many bytes of memory the cache takes of a checkpoint that has not
// begun, while its guest runs; 0: none. differences says that some of these pages may come
// as differences. An early page is staged like any other: Discard drops it, and Flush puts
// it into the guest's memory. A cache that keeps no copy (CacheConfig.StagedOnly) takes no
// differences early: it has the page from which one differs only in the guest, and only
// while the guest stands still. With CacheConfig.MaxStaged the result is half of that, so
// that there is room for the checkpoint. The method makes a Cache a colo.EarlyStage, and is
// called after the first Flush of a session.
func (c *Cache) TakesEarly(differences bool) uint64 {
	switch {
	case c.KeepsCopy():
		return math.MaxUint64
	case differences:
		return 0
	case c.cfg.MaxStaged > 0:
		return c.cfg.MaxStaged / 2
	}
	return math.MaxUint64
}
