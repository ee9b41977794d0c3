package ram

import (
	"sync"

	"github.com/gocolo/lockstep/internal/mapping"
)

// CacheConfig says how a [Cache] works; the zero value accepts what QEMU 7.2
// accepts.
type CacheConfig struct {
	// Format says what the block list contains. It has to be the one that the peer uses.
	Format Format

	// ZeroFillOnly refuses ZERO records with another fill byte than 0, as
	// QEMU does from 8.2 on. No QEMU sends one.
	ZeroFillOnly bool

	// StagedOnly has the cache hold only the pages that have come and are not committed, in
	// place of a copy of the primary's memory. The primary then sends again the pages that
	// the secondary's guest wrote itself: [Cache.SaveDirty] says what the caller must do
	// for that, and by [Cache.Resent] the caller says that it does so. With a primary
	// that sends nothing again (a QEMU) the cache keeps a copy all the same: it then
	// copies all of the guest's memory at once, at the end of the initial
	// synchronisation, before the secondary says that it is ready for the first
	// checkpoint ([Cache.KeepCopy]). It needs Linux with pages of 4 KiB, which arm64 and
	// ppc64 hosts may not have; NewCache elsewhere gives an error that wraps
	// [errors.ErrUnsupported].
	StagedOnly bool

	// MaxStaged bounds the memory that a cache with StagedOnly holds, in bytes.
	// A checkpoint that needs more fails to load ([ErrStagedFull]), and so ends
	// the session. 0 means as much as the guest has, which any checkpoint fits. Memory
	// that the kernel does not take back counts.
	MaxStaged uint64

	// KeepAfter does for the pages that the secondary's guest writes what
	// SaverConfig.KeepAfter does on the primary. A page that stays writable is rolled back
	// at each checkpoint. With StagedOnly the primary sends such a page again each time.
	KeepAfter int

	// Overlap has the pages of an initial synchronisation put into the guest's memory while
	// others are received, so that the first Flush, for which the primary waits, does not
	// copy all memory. LoadState does it on a goroutine of its own that has ended when
	// LoadState returns. After a run of data pages it takes memory of the cache for as many
	// again before they come (8 MiB at most, and what did not come is given back in Flush
	// and Discard). Until that Flush the guest's memory is in no consistent state, so a
	// guest whose synchronisation broke must not run on. Without a copy (StagedOnly) the
	// pages go straight into the guest's memory in any case, and Overlap does nothing.
	Overlap bool

	// Resumable has the cache keep, after a session, the primary's memory that it
	// holds, so that the next session can go on from it ([Cache.Resume]). The memory
	// stays taken and the dirty log stays on until Close. The guest may run
	// meanwhile: the log has what it writes.
	Resumable bool
}

// Cache stages the memory that the primary sends, and Flush copies it into the
// guest. It is a [vmstate.LiveLoader]; register it under [SectionName] and
// [Version], as Register does.
//
// For every block it maps as much memory as the block is long, which always
// holds the primary's memory as last received: that is what a secondary's guest
// is rolled back to, and what differences apply to. The guest's own memory
// changes in Flush and at no other time. (With CacheConfig.StagedOnly the cache
// holds less, and the guest's memory is void until the first Flush of a session:
// see [Cache.SaveDirty]. With CacheConfig.Overlap it is void until then, too.)
//
// A Cache belongs to one goroutine at a time.
//
// [vmstate.LiveLoader]: https://pkg.go.dev/github.com/gocolo/lockstep/vmstate#LiveLoader
type Cache struct {
	blocks []cacheBlock
	index  map[string]int // by name, the block's place in blocks
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
	statsDone bool // stats have counted a Flush: the next page begins anew
	logging   bool // the cache has switched the dirty log on
	kept      bool // Discard has kept what the last Flush made
	resumed   bool // Resume was called, and NewSession not yet
	unlogged  bool // the dirty log failed, or a block could not change its length: in which pages the guest differs is not known

	only  stagedOnly
	keep  keeping
	fresh bool // wrote of the blocks is of a checkpoint that keep has not counted yet

	overlap overlap
}

// cacheBlock is a block of a Cache.
type cacheBlock struct {
	Block
	number  int    // in Cache.blocks
	page    []byte // the cache, as long as Host; nil for a block that is not sent
	staged  Bitmap // pages received since the last Flush
	data    Bitmap // pages of the cache that may hold something else than zeros
	placed  Bitmap // pages of the first synchronisation that are in the guest's memory; nil: none
	placing Bitmap // pages of them that somebody may be reading from the cache; nil: none
	ahead   Bitmap // pages of the cache for which memory was taken before they came; nil: none
	only    stagedPages
	keep    keptPages
	wrote   Bitmap // pages that the guest here wrote before the last Flush; nil if none are to be kept
	length  uint64 // of the block, as the last block list says
	told    uint64 // the length that the guest has
	listed  bool   // in the block list that is being read
}

// name is "" where a record has been read no further than to its first word.
func (b *cacheBlock) name() string {
	if b == nil {
		return ""
	}
	return b.Name
}

// CacheStats counts what was received for one checkpoint, and what its Flush
// did.
type CacheStats struct {
	Stats
	Flushed uint64 // pages that Flush copied from the cache into the guest
}

// NewCache maps the memory for blocks. log tells which pages the secondary's
// own guest dirtied; it may be nil if that guest does not run between two
// calls of Flush.
func NewCache(blocks []Block, log DirtyLog, cfg CacheConfig) (*Cache, error) {
	if err := CheckBlocks(blocks); err != nil {
		return nil, err
	}
	c := &Cache{index: make(map[string]int), log: log, cfg: cfg, last: noBlock, first: true, keep: newKeeping(log, cfg.KeepAfter)}
	for i, b := range blocks {
		cb := cacheBlock{Block: b, number: i, length: b.used(), told: b.used()}
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
		if c.keep.on() {
			cb.wrote = NewBitmap(pages)
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

// Stats returns the counts since the last Flush, or up to and including it
// until the next page comes. After the first Flush they are those of the
// initial synchronisation.
func (c *Cache) Stats() CacheStats { return c.stats }
