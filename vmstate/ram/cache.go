package ram

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
)

// CacheConfig is how a [Cache] works; the zero value accepts what QEMU 7.2
// accepts.
type CacheConfig struct {
	// Format is what the block list contains. The peer's has to be the same.
	Format Format

	// ZeroFillOnly refuses ZERO records with another fill byte than 0, as
	// QEMU does from 8.2 on. No QEMU sends one.
	ZeroFillOnly bool

	// StagedOnly has the cache hold only what came and is not committed, in
	// place of a copy of the primary's memory. Pages that the secondary's guest
	// wrote itself are then taken from the primary again: see [Cache.SaveDirty]
	// for what that asks of whoever drives the cache, who says with [Cache.Resent]
	// that it does so. With a primary that sends nothing again (a QEMU) a copy is
	// kept all the same: all of the guest's memory is then copied at once, at the
	// end of the initial synchronisation, before the secondary says that it is
	// ready for the first checkpoint ([Cache.KeepCopy]). It needs Linux with pages of
	// 4 KiB, which arm64 and ppc64 hosts may not have; NewCache elsewhere gives an error that wraps [errors.ErrUnsupported].
	StagedOnly bool

	// MaxStaged bounds the memory that a cache with StagedOnly holds, in bytes.
	// A checkpoint that needs more fails to load ([ErrStagedFull]), and so ends
	// the session. 0 means as much as the guest has, which any checkpoint fits. Memory
	// that the kernel does not take back counts.
	MaxStaged uint64

	// Resumable has the cache keep what it holds of the primary's memory after a
	// session, for the next ([Cache.Resume]): its memory, and the dirty log on, until
	// Close. The guest stays paused meanwhile, or what it does is in the log.
	Resumable bool
}

// Cache stages the memory that the primary sends, and makes it the guest's when
// told to. It is a [vmstate.LiveLoader]; register it under [SectionName] and
// [Version], as Register does.
//
// For every block it maps as much memory as the block is long, which always
// holds the primary's memory as last received: that is what a secondary's guest
// is rolled back to, and what differences apply to. The guest's own memory
// changes in Flush and at no other time. (With CacheConfig.StagedOnly the cache
// holds less, and the guest's memory is void until the first Flush of a session:
// see [Cache.SaveDirty].)
//
// A Cache belongs to one goroutine at a time.
//
// [vmstate.LiveLoader]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveLoader
type Cache struct {
	blocks []cacheBlock
	index  map[string]int
	log    DirtyLog
	cfg    CacheConfig

	beside PageReceiver // nil: all pages are in the stream
	mu     sync.Mutex   // of what is staged, where there is one

	last   int  // the block of the last record on this connection, or noBlock
	first  bool // nothing was flushed in this session
	void   bool // what is staged is not to be used
	closed bool

	inflate   inflater
	stats     CacheStats
	statsDone bool
	logging   bool
	kept      bool // Discard has kept what the last Flush made
	resumed   bool // Resume was called, and NewSession not yet
	unlogged  bool // the dirty log failed, or a block could not change its length: what the guest differs in is not known

	only stagedOnly
}

// cacheBlock is a block of a Cache.
type cacheBlock struct {
	Block
	page   []byte // the cache, as long as Host; nil for a block that is not sent
	staged Bitmap // pages received since the last Flush
	data   Bitmap // pages of the cache that may hold something else than zeros
	only   stagedPages
	length uint64 // of the block, as the last block list says
	told   uint64 // the length that the guest has
	listed bool   // in the block list that is being read
}

// CacheStats counts what was received for one checkpoint, and what its Flush
// did.
type CacheStats struct {
	Stats
	Flushed uint64 // pages of the guest that Flush made the cache's
}

// NewCache maps the memory for blocks. log tells which pages the secondary's
// own guest dirtied; it may be nil if that guest does not run between two
// calls of Flush.
func NewCache(blocks []Block, log DirtyLog, cfg CacheConfig) (*Cache, error) {
	if err := checkBlocks(blocks); err != nil {
		return nil, err
	}
	c := &Cache{index: make(map[string]int), log: log, cfg: cfg, last: noBlock, first: true}
	for i, b := range blocks {
		cb := cacheBlock{Block: b, length: b.used(), told: b.used()}
		if !cfg.Format.IgnoreShared || !b.Shared {
			var err error
			newMapping := mapping.New
			if cfg.StagedOnly {
				newMapping = mapping.NewSparse
			}
			if cb.page, err = newMapping(len(b.Host)); err != nil {
				c.unmap()
				return nil, &Error{Op: "block", Block: b.Name, Stream: -1, Err: err}
			}
		}
		pages := len(b.Host) / PageSize
		cb.staged, cb.data = NewBitmap(pages), NewBitmap(pages)
		if cfg.StagedOnly {
			cb.only = newStagedPages(pages)
		}
		c.blocks = append(c.blocks, cb)
		c.index[b.Name] = i
	}
	c.only.give = mapping.Release
	c.only.begin(c)
	return c, nil
}

// PostcopyAdvised says that the stream's POSTCOPY_ADVISE command was read: the
// block list now has page sizes ([Format].Postcopy).
func (c *Cache) PostcopyAdvised() { c.cfg.Format.Postcopy = true }

// NewSession begins a session with a peer that will send all of its memory, or after
// [Cache.Resume] what is lacking here: what is staged is void and the connection's
// block context forgotten.
func (c *Cache) NewSession() {
	if c.resumed {
		c.resumed = false
		return
	}
	c.drop()
	c.first, c.void = true, false
	c.unlogged, c.kept = false, false
	c.only.begin(c)
}

// LoadState decodes the body of a RAM section into the cache. Every error is an
// [*Error] that says where in the stream, and which page, as far as that is
// known; the guest's memory is untouched (with CacheConfig.StagedOnly, from the
// first Flush of a session on), but what is staged is void: a load that failed is followed by Discard, and the connection's end.
func (c *Cache) LoadState(r *qemufile.Reader, version uint32) error {
	if version != Version {
		return &Error{Op: "load", Stream: r.Offset(), Err: fmt.Errorf("%w: %d", ErrVersion, version)}
	}
	if c.closed {
		return &Error{Op: "load", Stream: r.Offset(), Err: ErrDiscarded}
	}
	if c.statsDone {
		c.stats, c.statsDone = CacheStats{}, false
	}
	c.only.trim(c)
	start := r.Offset()
	err := c.begin()
	if err == nil {
		err = c.load(r)
	} else {
		err = loadError(start, "", 0, err)
	}
	c.lock()
	defer c.unlock()
	c.stats.Bytes += uint64(r.Offset() - start)
	if err != nil {
		c.void = true
	}
	return err
}

// load reads records up to and including EOS.
func (c *Cache) load(r *qemufile.Reader) error {
	for {
		at := r.Offset()
		word := r.BE64()
		if err := r.Err(); err != nil {
			return loadError(at, "", 0, err)
		}
		off := word &^ flagMask
		var b *cacheBlock
		var err error
		switch word & flagMask &^ flagContinue {
		case flagPage:
			if b, err = c.block(r, word); err == nil {
				err = c.loadPage(r, b, off)
			}
		case flagZero:
			if b, err = c.block(r, word); err == nil {
				err = c.loadZero(r, b, off)
			}
		case flagXBZRLE:
			if b, err = c.block(r, word); err == nil {
				err = c.loadDelta(r, b, off)
			}
		case flagCompressed:
			if b, err = c.block(r, word); err == nil {
				err = c.loadCompressed(r, b, off)
			}
		case flagMemSize:
			if err := c.loadBlockList(r, off); err != nil {
				return loadError(at, "", 0, err)
			}
		case flagMultiFDFlush:
			// A barrier between this stream and the multifd channels, of
			// which there are none here.
		case flagEOS: // whatever its address says
			if err := c.end(); err != nil {
				return loadError(at, "", 0, err)
			}
			return nil
		default:
			err = fmt.Errorf("%w: %#x", ErrFlags, word&flagMask)
		}
		if err != nil {
			name := ""
			if b != nil {
				name = b.Name
			}
			return loadError(at, name, off, err)
		}
	}
}

// loadError says where err arose. The end of the stream is never expected
// before EOS.
func loadError(at int64, block string, off uint64, err error) error {
	if e, ok := err.(*Error); ok {
		e.Op, e.Offset, e.Stream = "load", off, at
		return e
	}
	if block == "" {
		off = 0
	}
	return &Error{Op: "load", Block: block, Offset: off, Stream: at, Err: qemufile.NoEOF(err)}
}

// block returns the block of a page record, whose name follows its first word
// unless CONTINUE is set, and checks that the page is in it.
func (c *Cache) block(r *qemufile.Reader, word uint64) (*cacheBlock, error) {
	if word&flagContinue == 0 {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return nil, err
		}
		i, ok := c.index[string(name)] // does not allocate
		if !ok {
			return nil, unknownBlock(name)
		}
		c.last = i
	} else if c.last == noBlock {
		return nil, ErrNoBlock
	}
	b := &c.blocks[c.last]
	switch {
	case b.page == nil:
		return b, ErrIgnored
	case word&^flagMask >= b.length:
		return b, fmt.Errorf("%w: length %#x", ErrOffset, b.length)
	case c.void:
		return b, ErrDiscarded
	}
	return b, nil
}

func unknownBlock(name []byte) error {
	return &Error{Block: string(name), Err: ErrUnknownBlock}
}

// loadPage reads a page's contents straight into the cache.
func (c *Cache) loadPage(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	if c.beside != nil {
		return c.loadPageBeside(r, b, off)
	}
	page, err := c.place(b, off)
	if err != nil {
		return err
	}
	c.stats.Pages++
	return r.ReadFull(page)
}

// loadPageBeside is loadPage where pages come elsewhere meanwhile: they do not wait for
// the stream.
func (c *Cache) loadPageBeside(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	data := r.Next(PageSize)
	if err := r.Err(); err != nil {
		return err
	}
	return c.stage(b, off, data)
}

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

// place returns where the contents of a page are staged. What was there may be
// anything; base is for those who want to know.
func (c *Cache) place(b *cacheBlock, off uint64) ([]byte, error) {
	i := int(off / PageSize)
	if c.only.on {
		return c.only.place(c, b, i)
	}
	b.staged.Set(i)
	b.data.Set(i)
	return b.page[off : off+PageSize : off+PageSize], nil
}

// base is place for what is a difference from what the peer has: the page is
// there as it was received last.
func (c *Cache) base(b *cacheBlock, off uint64) ([]byte, error) {
	if c.only.on {
		return c.only.base(c, b, int(off/PageSize))
	}
	return c.place(b, off)
}

// loadZero makes a page zeros (or what its fill byte says). A page that was
// never written stays that way: it costs no memory.
func (c *Cache) loadZero(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	fill := r.Byte()
	if err := r.Err(); err != nil {
		return err
	}
	if fill != 0 && c.cfg.ZeroFillOnly {
		return fmt.Errorf("%w: %#x", ErrFill, fill)
	}
	c.lock()
	defer c.unlock()
	c.stats.Pages++
	c.stats.ZeroPages++
	return c.fill(b, off, fill)
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
	switch {
	case c.only.on:
		c.only.zero(c, b, i)
	case b.data.Has(i):
		b.data.Clear(i)
		clear(b.page[off : off+PageSize])
	}
	return nil
}

// loadDelta applies an XBZRLE record to the page in the cache.
func (c *Cache) loadDelta(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	delta, err := readDelta(r)
	if err != nil {
		return err
	}
	c.lock()
	defer c.unlock()
	page, err := c.base(b, off)
	if err != nil {
		return err
	}
	c.stats.Pages++
	c.stats.XBZRLEPages++
	if err := xbzrle.Decode(page, delta); err != nil {
		return fmt.Errorf("%w: %w", ErrXBZRLE, err)
	}
	return nil
}

// readDelta returns the delta of an XBZRLE record as a view of r's buffer.
func readDelta(r *qemufile.Reader) ([]byte, error) {
	head := r.Next(3)
	if err := r.Err(); err != nil {
		return nil, qemufile.NoEOF(err)
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	switch {
	case head[0] != encodingXBZRLE:
		return nil, fmt.Errorf("%w: encoding %d", ErrXBZRLE, head[0])
	case n > PageSize:
		return nil, fmt.Errorf("%w: %d bytes", ErrXBZRLE, n)
	}
	delta := r.Next(n)
	return delta, qemufile.NoEOF(r.Err())
}

// loadCompressed inflates a compressed page into the cache.
func (c *Cache) loadCompressed(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	z, err := readCompressed(r)
	if err != nil {
		return err
	}
	page, err := c.inflate.page(z)
	if err != nil {
		return err
	}
	return c.stage(b, off, page)
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

// loadBlockList reads the blocks of a MEM_SIZE record and compares them with
// the guest's. A list that names some blocks has to name all of them, or a part
// of the guest would silently not be the primary's; an empty list, or none, is
// accepted as QEMU does.
func (c *Cache) loadBlockList(r *qemufile.Reader, total uint64) error {
	if c.beside != nil {
		return fmt.Errorf("%w: while pages come beside the stream", ErrBlockList)
	}
	if c.void {
		// The peer begins anew, with all of its memory.
		c.NewSession()
	}
	if total == 0 {
		return nil
	}
	for i := range c.blocks {
		c.blocks[i].listed = false
	}
	if c.cfg.Format.MappedRAM {
		if err := c.loadMapped(r, total); err != nil {
			return err
		}
		return c.allListed()
	}
	for left := total; left > 0; {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return err
		}
		i, ok := c.index[string(name)]
		if !ok {
			return unknownBlock(name)
		}
		b := &c.blocks[i]
		if b.listed {
			return &Error{Block: b.Name, Err: fmt.Errorf("%w: listed twice", ErrBlockList)}
		}
		b.listed = true
		info, err := readBlockInfo(r, c.cfg.Format, func(*qemufile.Reader, Format) bool { return b.hugePages() != 0 }, left)
		if err == nil {
			err = b.fits(info, c.cfg.Format)
		}
		if err != nil {
			return &Error{Block: b.Name, Err: qemufile.NoEOF(err)}
		}
		b.length = info.Length
		left -= info.Length
	}
	return c.allListed()
}

// allListed reports, as an error, a block that the list has not named.
func (c *Cache) allListed() error {
	for i := range c.blocks {
		if b := &c.blocks[i]; !b.listed {
			return &Error{Block: b.Name, Err: fmt.Errorf("%w: block is missing", ErrBlockList)}
		}
	}
	return nil
}

// loadMapped stages the memory of a mapped-ram file: the pages that it has, and zeros.
func (c *Cache) loadMapped(r *qemufile.Reader, total uint64) error {
	k := Walker{Format: c.cfg.Format}
	err, failed := k.mapped(r, &Record{Stream: r.Offset(), Total: total}, func(rec *Record) error {
		i, ok := c.index[rec.Block]
		if !ok {
			return unknownBlock([]byte(rec.Block))
		}
		b := &c.blocks[i]
		if rec.Kind == KindPage {
			return c.stage(b, rec.Offset, rec.Data)
		}
		err := b.fits(rec.Blocks[0], c.cfg.Format)
		if err == nil && rec.Mapped.PageSize != PageSize {
			err = fmt.Errorf("%w: pages of %d bytes", ErrMapped, rec.Mapped.PageSize)
		}
		if err != nil {
			return &Error{Block: b.Name, Err: err}
		}
		b.listed, b.length = true, rec.Blocks[0].Length
		c.lock()
		defer c.unlock()
		for off := uint64(0); off < b.length; off += PageSize {
			if err := c.fill(b, off, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// fits compares a block of the list with the guest's.
func (b *cacheBlock) fits(info BlockInfo, f Format) error {
	switch {
	case info.Length != b.length && !b.Resizable:
		return fmt.Errorf("%w: length %#x, here %#x", ErrBlockList, info.Length, b.length)
	case info.Length > uint64(len(b.Host)):
		return fmt.Errorf("%w: length %#x, at most %#x", ErrBlockList, info.Length, len(b.Host))
	case info.Length%PageSize != 0:
		return fmt.Errorf("%w: length %#x is not a multiple of a page", ErrBlockList, info.Length)
	case info.PageSize != 0 && info.PageSize != b.HostPageSize:
		return fmt.Errorf("%w: page size %#x, here %#x", ErrBlockList, info.PageSize, b.HostPageSize)
	case f.IgnoreShared && b.Shared && info.GPA != b.GPA:
		return fmt.Errorf("%w: at guest address %#x, here %#x", ErrBlockList, info.GPA, b.GPA)
	}
	return nil
}

// Stats returns the counts since the last Flush, or up to and including it
// until the next page comes. After the first Flush they are those of the
// initial synchronisation.
func (c *Cache) Stats() CacheStats { return c.stats }
