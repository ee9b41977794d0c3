package ram

import (
	"fmt"
	"math/bits"

	"github.com/gocolo/lockstep/qemufile"
)

// A secondary whose cache keeps no copy (CacheConfig.StagedOnly) tells the primary
// at each checkpoint which pages its own guest wrote, and the primary sends them
// again, whole. The list is, for each block with such pages, its name as a
// counted string, the number of words as be32, and the words of the bitmap that
// are not zero, ascending: index as be32, 64 pages as be64. An empty name ends
// it. No QEMU knows it.

// SaveDirty writes the pages that the guest, which is paused, wrote since the
// last Flush, for the primary's [Saver.LoadDirty]. Whoever drives a cache with
// CacheConfig.StagedOnly, having said so with [Cache.Resent] before the first Flush
// of the session, calls it once for each checkpoint but the first: before
// the first page of the checkpoint is sent, and with the guest paused until
// Flush. A cache that keeps a copy writes an empty list. A page that came while the
// guest ran, and so is staged already, is left out of the list: Flush replaces what the
// guest wrote to it.
//
// As without StagedOnly, the guest's memory is at every moment that of one
// checkpoint and what the guest has written since. But until the first Flush of
// a session the guest's memory is in no consistent state, since the initial
// synchronisation goes straight into it.
//
// The writer's error sticks as usual. An error of the dirty log is an [*Error].
func (c *Cache) SaveDirty(w *qemufile.Writer) error {
	if c.closed || c.void {
		return &Error{Op: "dirty log", Stream: -1, Err: ErrDiscarded}
	}
	if err := c.only.readOwn(c); err != nil {
		return err
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		if !c.only.on || b.page == nil {
			continue
		}
		b.only.own.ClearRange(int(b.length/PageSize), 64*len(b.only.own))
		words := 0
		for wi, word := range b.only.own {
			if word&^b.staged[wi] != 0 {
				words++
			}
		}
		if words == 0 {
			continue
		}
		w.PutCountedString(b.Name)
		w.PutBE32(uint32(words))
		for wi, word := range b.only.own {
			if word &^= b.staged[wi]; word != 0 {
				w.PutBE32(uint32(wi))
				w.PutBE64(word)
			}
		}
	}
	w.PutByte(0)
	return w.Err()
}

// LoadDirty reads what a secondary's [Cache.SaveDirty] wrote, and has the pages
// that it names sent with the next checkpoint, whole. It is called before that
// checkpoint's pages are sent; a capture that was not sent is given up.
//
// The list is not trusted: each error is an [*Error] with [ErrDirtyList],
// [ErrUnknownBlock], or the stream's, and nothing of it counts then. It
// allocates nothing.
func (s *Saver) LoadDirty(r *qemufile.Reader) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.abandon()
	for i := range s.blocks {
		clear(s.blocks[i].taken)
	}
	at := r.Offset()
	err := s.loadDirty(r)
	s.dirty = 0
	for bi := range s.blocks {
		b := &s.blocks[bi]
		for wi, word := range b.taken {
			if word == 0 {
				continue
			}
			b.taken[wi] = 0
			if err != nil {
				continue
			}
			b.dirty[wi] |= word
			for ; s.deltas != nil && word != 0; word &= word - 1 {
				s.deltas.Drop(pageKey(bi, wi<<6|bits.TrailingZeros64(word)))
			}
		}
		s.dirty += b.dirty.Count()
	}
	if err == nil {
		return nil
	}
	e, ok := err.(*Error)
	if !ok {
		e = &Error{Err: qemufile.NoEOF(err)}
	}
	e.Op, e.Stream = "dirty list", at
	return e
}

// loadDirty reads the list into taken, which nothing else uses between a
// SaveComplete and the next Capture.
func (s *Saver) loadDirty(r *qemufile.Reader) error {
	for i := range s.blocks {
		s.blocks[i].told = false
	}
	for {
		name := r.CountedBytes()
		if err := r.Err(); err != nil {
			return err
		}
		if len(name) == 0 {
			return nil
		}
		var b *saverBlock
		for i := range s.blocks {
			if s.blocks[i].Name == string(name) { // does not allocate
				b = &s.blocks[i]
			}
		}
		switch {
		case b == nil:
			return unknownBlock(name)
		case b.told:
			return &Error{Block: b.Name, Err: fmt.Errorf("%w: listed twice", ErrDirtyList)}
		}
		b.told = true
		if err := b.loadDirty(r); err != nil {
			return &Error{Block: b.Name, Err: qemufile.NoEOF(err)}
		}
	}
}

func (b *saverBlock) loadDirty(r *qemufile.Reader) error {
	pages := len(b.mem) / PageSize
	n, next := r.BE32(), 0
	if err := r.Err(); err != nil {
		return err
	}
	if uint64(n) > uint64(len(b.taken)) {
		return fmt.Errorf("%w: %d words for %d pages", ErrDirtyList, n, pages)
	}
	for range n {
		wi, word := r.BE32(), r.BE64()
		if err := r.Err(); err != nil {
			return err
		}
		switch {
		case uint64(wi) < uint64(next) || uint64(wi) >= uint64(len(b.taken)) || word == 0:
			return fmt.Errorf("%w: word %d is %#x", ErrDirtyList, wi, word)
		case int(wi)<<6|(63-bits.LeadingZeros64(word)) >= pages:
			return fmt.Errorf("%w: page beyond %d", ErrDirtyList, pages)
		}
		b.taken[wi] |= word
		next = int(wi) + 1
	}
	return nil
}
