package ram

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// loadBlockList reads the blocks of a MEM_SIZE record and compares them with the guest's.
// A list that names some blocks has to name all of them, since otherwise a part of the
// guest would silently differ from the primary's; an empty list, or none, is accepted as
// QEMU does.
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
		switch {
		case rec.Kind == KindPage && b.page == nil:
			return &Error{Block: b.Name, Err: ErrIgnored}
		case rec.Kind == KindPage:
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
		if b.page == nil {
			return nil // both sides see its memory
		}
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
