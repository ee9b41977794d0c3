package ram

// keepWritten counts, for keep, the pages that the guest here wrote before the last
// Flush; once after each Flush. It leaves out the first Flush of a session, which has all
// pages.
func (c *Cache) keepWritten() {
	if !c.fresh {
		return
	}
	c.fresh = false
	c.keep.next()
	for i := range c.blocks {
		if b := &c.blocks[i]; b.page != nil {
			c.keep.note(b.Name, &b.keep, b.wrote)
			clear(b.wrote)
		}
	}
}

// keepNone has the log leave no page writable any more. The next reading of the log reports
// the pages that it did leave writable.
func (c *Cache) keepNone() {
	c.fresh = false
	for i := range c.blocks {
		if b := &c.blocks[i]; b.page != nil {
			c.keep.release(b.Name, &b.keep)
			clear(b.wrote)
		}
	}
}

// Kept returns the counts of pages that the dirty log leaves writable here: see
// CacheConfig.KeepAfter.
func (c *Cache) Kept() KeepStats { return c.keep.stats }
