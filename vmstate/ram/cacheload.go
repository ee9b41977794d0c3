package ram

import (
	"encoding/binary"
	"fmt"

	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
)

// LoadState decodes the body of a RAM section into the cache. Every error is an
// [*Error] that says where in the stream, and which page, as far as that is
// known; the guest's memory is untouched (with CacheConfig.StagedOnly or Overlap, from the
// first Flush of a session on; it is void up to that), but what is staged is void: a load
// that failed is followed by Discard, and the connection's end.
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
		c.overlap.begin(c)
		err = c.load(r)
		c.overlap.end(c)
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
			return loadError(at, b.name(), off, err)
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
	var err error
	if c.last, err = recordBlock(r, word, c.index, c.last); err != nil {
		return nil, err
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

// recordBlock returns the number of the block of a page record, whose name follows the first
// word unless CONTINUE is set: then it is that of the record before, last. On an error it
// returns last.
func recordBlock(r *qemufile.Reader, word uint64, index map[string]int, last int) (int, error) {
	if word&flagContinue != 0 {
		if last == noBlock {
			return last, ErrNoBlock
		}
		return last, nil
	}
	name := r.CountedBytes()
	if err := r.Err(); err != nil {
		return last, err
	}
	i, ok := index[string(name)] // does not allocate
	if !ok {
		return last, unknownBlock(name)
	}
	return i, nil
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

// loadPageBeside does what loadPage does where pages come over other connections
// meanwhile: those do not wait for the stream.
func (c *Cache) loadPageBeside(r *qemufile.Reader, b *cacheBlock, off uint64) error {
	data := r.Next(PageSize)
	if err := r.Err(); err != nil {
		return err
	}
	return c.stage(b, off, data)
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
