package ram

import (
	"fmt"
	"math/bits"
)

// stagedOnly is the part of a Cache that CacheConfig.StagedOnly switches on.
// The mapping of a block then holds no copy of the primary's memory: each page
// that is staged is at its own offset in the mapping, and the rest of it takes
// no memory.
//
// Until the first Flush of a session the guest's memory is void, so pages go straight into
// it, as far as the guest has any: the part by which the primary's block is longer is
// staged, since the guest hears of it in Flush (Block.Resize) and its memory may not be
// touched before. From then on the primary's page is in the guest's memory if it is not
// staged and the guest has not written it; a page that the guest has written the primary
// sends whole.
//
// Between a Flush and the next load the pages of that checkpoint keep their
// memory: a guest dirties much the same pages again, and they are then there.
// What was kept and is not staged again is given back after the next Flush. So
// the memory is at most that of two checkpoints.
type stagedOnly struct {
	on      bool   // in this session; off also where KeepCopy was called
	resent  bool   // in this session, so that the first Flush does not call KeepCopy
	copied  bool   // by KeepCopy, so that the first Flush does not
	held    uint64 // pages that have memory
	ownRead bool   // own was read in this checkpoint
	stale   bool   // what is not kept has not been given back yet
	swept   bool   // and since the last Flush all that could be was

	give func([]byte) error // gives memory back to the system
}

// stagedPages keeps what a stagedOnly knows of the pages of one block.
type stagedPages struct {
	held Bitmap // pages of the mapping that have memory
	keep Bitmap // of them, those of the last checkpoint
	own  Bitmap // pages that the guest wrote since the last Flush, as far as read
	had  int    // pages that the guest had when the session began
}

func newStagedPages(pages int) stagedPages {
	return stagedPages{held: NewBitmap(pages), keep: NewBitmap(pages), own: NewBitmap(pages)}
}

// begin begins a session.
func (o *stagedOnly) begin(c *Cache) {
	o.on, o.copied, o.resent = c.cfg.StagedOnly, false, false
	for i := range c.blocks {
		b := &c.blocks[i]
		b.only.had = int(b.told / PageSize)
	}
}

// direct reports whether page i is to be written straight into the guest's
// memory.
func (o *stagedOnly) direct(c *Cache, b *cacheBlock, i int) bool {
	return o.on && c.first && i < b.only.had
}

// place does what Cache.place does.
func (o *stagedOnly) place(c *Cache, b *cacheBlock, i int) ([]byte, error) {
	off := i * PageSize
	if o.direct(c, b, i) {
		b.staged.Set(i)
		return b.Host[off : off+PageSize : off+PageSize], nil
	}
	if !b.only.held.Has(i) {
		if c.cfg.MaxStaged > 0 && (o.held+1)*PageSize > c.cfg.MaxStaged {
			// Once in a checkpoint: what comes to be free after it, zero gives back.
			if !o.swept {
				o.swept = true
				o.release(c, func(b *cacheBlock, wi int) uint64 { return b.staged[wi] & b.data[wi] })
			}
			if (o.held+1)*PageSize > c.cfg.MaxStaged {
				return nil, fmt.Errorf("%w: at most %d bytes", ErrStagedFull, c.cfg.MaxStaged)
			}
		}
		b.only.held.Set(i)
		o.held++
	}
	b.staged.Set(i)
	b.data.Set(i)
	return b.page[off : off+PageSize : off+PageSize], nil
}

// base does what Cache.base does.
func (o *stagedOnly) base(c *Cache, b *cacheBlock, i int) ([]byte, error) {
	if o.direct(c, b, i) {
		return o.place(c, b, i)
	}
	staged, zero := b.staged.Has(i), !b.data.Has(i)
	// The guest's page is the primary's only where SaveDirty has said that it is not among
	// those that were written, and only as long as the guest stands still.
	if !staged && !c.first && (!o.ownRead || b.only.own.Has(i)) {
		return nil, ErrNotResent
	}
	page, err := o.place(c, b, i)
	switch {
	case err != nil:
		return nil, err
	case !staged && uint64(i) < b.told/PageSize:
		copy(page, b.Host[i*PageSize:])
	case !staged || zero:
		clear(page)
	}
	return page, nil
}

// zero does what fill does for zeros. The page is marked as staged.
func (o *stagedOnly) zero(c *Cache, b *cacheBlock, i int) {
	if !o.direct(c, b, i) {
		// What stands at its place does not count.
		if b.data.Has(i) && c.cfg.MaxStaged > 0 {
			o.giveBack(b, i, i+1)
			if !b.only.held.Has(i) {
				o.held--
			}
		}
		b.data.Clear(i)
		return
	}
	if page := b.Host[i*PageSize : (i+1)*PageSize]; !isZero(page) {
		clear(page)
	}
}

// readOwn reads what the guest wrote, once for each checkpoint.
func (o *stagedOnly) readOwn(c *Cache) error {
	if !o.on || c.first || o.ownRead {
		return nil
	}
	if err := c.readLog(); err != nil {
		return err
	}
	o.ownRead = true
	return nil
}

// CheckStaged reports whether what is staged can be flushed: with [ErrNotResent]
// that the primary has not sent again a page that the guest wrote
// (CacheConfig.StagedOnly), and with [ErrDiscarded] that nothing is staged. It is
// called when all of a checkpoint has come, with the guest paused: Flush, which
// checks the same, may be too late to turn back.
func (c *Cache) CheckStaged() error {
	if c.void || c.closed {
		return &Error{Op: "load", Stream: -1, Err: ErrDiscarded}
	}
	if c.only.on && !c.first {
		// Again: a device may have written after the list was, and Flush would find it.
		if err := c.readLog(); err != nil {
			return err
		}
	}
	return c.only.check(c)
}

// check reports a page that the guest wrote and the primary has not sent.
func (o *stagedOnly) check(c *Cache) error {
	if !o.on || c.first {
		return nil
	}
	for bi := range c.blocks {
		b := &c.blocks[bi]
		for wi, own := range b.only.own {
			lost := own &^ b.staged[wi]
			if lost == 0 {
				continue
			}
			if off := uint64(wi<<6|bits.TrailingZeros64(lost)) * PageSize; off < b.length {
				return &Error{Op: "flush", Block: b.Name, Offset: off, Stream: -1, Err: ErrNotResent}
			}
		}
	}
	return nil
}

// flush does what cacheBlock.flush does.
func (o *stagedOnly) flush(c *Cache, b *cacheBlock) (pages uint64) {
	if b.page == nil {
		return 0
	}
	if b.wrote != nil {
		b.only.own, b.wrote = b.wrote, b.only.own // which is empty, but for a retry of this Flush
	}
	clear(b.only.own)
	b.staged.ClearRange(int(b.length/PageSize), 64*len(b.staged))
	if c.first {
		pages = b.dropDirect()
	}
	for wi, word := range b.staged {
		b.only.keep[wi] = word & b.data[wi]
	}
	pages += b.flush()
	clear(b.data)
	return pages
}

// dropDirect unmarks the staged pages that were written straight into the
// guest's memory, and returns how many there were.
func (b *cacheBlock) dropDirect() (pages uint64) {
	n := b.staged.Count()
	b.staged.ClearRange(0, b.only.had)
	return uint64(n - b.staged.Count())
}

// flushed ends a Flush.
func (o *stagedOnly) flushed() { o.ownRead, o.swept, o.stale, o.copied = false, false, o.on, false }

// trim gives back, once after each Flush, what neither that checkpoint nor the
// next needs.
func (o *stagedOnly) trim(c *Cache) {
	if o.stale {
		o.stale = false
		o.release(c, func(b *cacheBlock, wi int) uint64 { return b.only.keep[wi] })
	}
}

// drop forgets what is staged and gives all memory back.
func (o *stagedOnly) drop(c *Cache) {
	if !c.cfg.StagedOnly || c.closed {
		return
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		if o.copied || !o.on {
			b.only.held.SetRange(0, len(b.Host)/PageSize)
		}
		clear(b.data)
		clear(b.only.own)
		clear(b.only.keep)
	}
	o.ownRead, o.stale, o.swept = false, false, false
	o.release(c, func(*cacheBlock, int) uint64 { return 0 })
}

// release gives the memory of all pages back but those that keep names, 64 at a
// time. One call to the kernel covers what lies between two that are kept.
func (o *stagedOnly) release(c *Cache, keep func(b *cacheBlock, wi int) uint64) {
	for bi := range c.blocks {
		b := &c.blocks[bi]
		if b.page == nil {
			continue
		}
		first, last := -1, -1 // pages to give back, with none to keep in between
		for wi, word := range b.only.held {
			kept := word & keep(b, wi)
			for m := word; m != 0; m &= m - 1 {
				bit := bits.TrailingZeros64(m)
				if kept>>bit&1 == 0 {
					if first < 0 {
						first = wi<<6 | bit
					}
					last = wi<<6 | bit
				} else if first >= 0 {
					o.giveBack(b, first, last+1)
					first = -1
				}
			}
		}
		if first >= 0 {
			o.giveBack(b, first, last+1)
		}
	}
	o.held = 0
	for bi := range c.blocks {
		o.held += uint64(c.blocks[bi].only.held.Count())
	}
}

// giveBack gives the memory of pages back. What the kernel does not take (it may
// be locked) is held as before.
func (o *stagedOnly) giveBack(b *cacheBlock, from, to int) {
	if o.give(b.page[from*PageSize:to*PageSize]) != nil {
		return
	}
	b.only.held.ClearRange(from, to)
}

// Settle gives back memory that the last checkpoint needed and the next is not
// likely to (CacheConfig.StagedOnly), and finds the pages that are to stay writable
// (CacheConfig.KeepAfter), while the guest runs. It makes a Cache a colo.Settler. Without
// it the next load, or the next Flush, does the same first. Memory that the
// kernel does not take back stays held, and is no error: there is none.
func (c *Cache) Settle() error {
	c.only.trim(c)
	c.keepWritten()
	return nil
}

// KeepsCopy reports whether the cache keeps a copy of the primary's memory in this
// session: CacheConfig.StagedOnly is not set, or KeepCopy was called.
func (c *Cache) KeepsCopy() bool { return !c.only.on }

// Resent says that in this session the primary is told what is written here
// (SaveDirty) and sends it again, so that no copy of its memory is needed. It is
// called before the first Flush of each session; where it is not, that Flush calls
// KeepCopy. Without CacheConfig.StagedOnly it does nothing.
func (c *Cache) Resent() { c.only.resent = true }

// KeepCopy has the cache keep a copy of the primary's memory in this session in
// spite of CacheConfig.StagedOnly: the primary does not send again what is
// written here. It is called before the first Flush of a session, and copies all
// of the guest's memory, in one go. The error is an [*Error] with [ErrStagedFull] where
// CacheConfig.MaxStaged is less than that. Without StagedOnly it does nothing.
func (c *Cache) KeepCopy() error {
	switch {
	case !c.only.on:
		return nil
	case c.closed || c.void || !c.first:
		return &Error{Op: "copy", Stream: -1, Err: ErrDiscarded}
	}
	var need uint64
	for i := range c.blocks {
		need += uint64(len(c.blocks[i].page))
	}
	if c.cfg.MaxStaged > 0 && need > c.cfg.MaxStaged {
		return &Error{Op: "copy", Stream: -1, Err: fmt.Errorf("%w: a copy of the guest takes %d bytes, at most %d", ErrStagedFull, need, c.cfg.MaxStaged)}
	}
	c.only.on, c.only.copied = false, true
	for i := range c.blocks {
		if b := &c.blocks[i]; b.page != nil {
			b.staged.ClearRange(int(b.length/PageSize), 64*len(b.staged))
			c.stats.Flushed += b.dropDirect()
			for wi, word := range b.only.held { // zeros that came after something else
				for m := word &^ b.data[wi]; m != 0; m &= m - 1 {
					i := wi<<6 | bits.TrailingZeros64(m)
					clear(b.page[i*PageSize : (i+1)*PageSize])
				}
			}
			// Of the rest, Flush takes what has not come, when the guest has it.
			b.takeMissing(0, b.only.had)
		}
	}
	return nil
}

// Memory returns how much memory the cache holds at present besides the guest's,
// in bytes, without bitmaps, which are a few bits to a page.
func (c *Cache) Memory() uint64 {
	pages := c.only.held
	if !c.only.on {
		for i := range c.blocks {
			pages += uint64(c.blocks[i].data.Count())
		}
	}
	return pages * PageSize
}
