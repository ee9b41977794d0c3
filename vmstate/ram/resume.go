package ram

import "math/bits"

// A link that was lost for a moment need not cost a synchronisation of all memory.
// The saver knows of each page whether it may differ from the page in the last
// checkpoint that the peer has confirmed: it does if the page was written since
// (dirty), or was sent since (sent), because nobody knows whether a page that was sent
// arrived. The cache holds each page as the last checkpoint that it has committed had
// it, or as something that has been sent since. So a session that begins with the
// pages that are dirty or sent makes the two equal, even if the cache has committed
// one checkpoint more than the saver was told.
//
// Neither the saver nor the cache can know whether the other is the one of the
// session before. The caller knows, and calls Resume of both, or of neither.

// resumption keeps what a Saver knows of the session before.
type resumption struct {
	confirmed bool // sent and dirty are all that the peer lacks
	asked     bool // Resume was called, and SaveSetup not yet
}

// begin is SaveSetup's part; the log has been read. It reports whether the session
// goes on from what the peer has.
func (o *resumption) begin(s *Saver) bool {
	resumed := o.asked && o.confirmed
	o.asked, o.confirmed = false, resumed
	for i := range s.blocks {
		b := &s.blocks[i]
		if resumed {
			b.dirty.Or(b.sent)
		} else {
			clear(b.sent)
		}
	}
	return resumed
}

// lost records that pages may have been written that no log names.
func (o *resumption) lost() { o.confirmed = false }

// send notes that pages are being sent.
func (b *saverBlock) send(wi int, word uint64) {
	if b.sent != nil {
		b.sent[wi] |= word
	}
}

// Confirm says that the peer has committed all that was sent: the checkpoint whose
// SaveComplete was the last, or the initial synchronisation. It is called before anything
// more is sent or captured. Without SaverConfig.Resumable it does nothing.
func (s *Saver) Confirm() {
	if !s.cfg.Resumable || s.bad != nil || s.captured || s.err != nil {
		return
	}
	for i := range s.blocks {
		clear(s.blocks[i].sent)
	}
	s.resume.confirmed = true
}

// Resumable reports whether the saver knows what the peer lacks, which held the
// checkpoint that was confirmed last: SaverConfig.Resumable is set, one was
// confirmed, and the dirty log has been on, and has not failed, since. Nobody else
// may have read the log.
func (s *Saver) Resumable() bool { return s.resume.confirmed && s.err == nil }

// Resume has the next SaveSetup begin a session that sends only what the peer lacks. The peer must be
// that of the last session, hold the checkpoint that was confirmed last or a later one, and have
// called [Cache.Resume]. Resume reports whether the saver can do so; if not, the next session sends
// all memory. The guest may run. It is called between SaveCleanup and SaveSetup; pages that a
// [Saver.LoadDirty] adds in between are sent too.
func (s *Saver) Resume() bool {
	s.resume.asked = s.Resumable()
	return s.resume.asked
}

// Lacking reads the dirty log and returns how many bytes of memory the initial
// synchronisation of a session would send after a [Saver.Resume]: those of all pages, if
// the saver is not Resumable. It ceases to be Resumable when the log fails. The guest
// may run. It is called between SaveCleanup and SaveSetup.
func (s *Saver) Lacking() uint64 {
	if s.bad == nil && s.Resumable() {
		s.err = s.sync()
	}
	pages := 0
	for i := range s.blocks {
		b := &s.blocks[i]
		if !s.Resumable() {
			pages += len(b.mem) / PageSize
			continue
		}
		for w, word := range b.sent {
			pages += bits.OnesCount64(word | b.dirty[w])
		}
	}
	return uint64(pages) * PageSize
}

// Forget drops what SaverConfig.Resumable keeps: it switches the dirty log off, and the
// next session sends all memory. It is called after SaveCleanup, by a caller that will
// not resume.
func (s *Saver) Forget() {
	s.resume = resumption{}
	s.stopLog()
}

// suspend is called by Discard. If another session can go on from the contents of the cache,
// it keeps them and returns true. Pages that were staged and not committed count as staged,
// since they differ from those of the guest.
func (c *Cache) suspend() bool {
	c.resumed, c.kept = false, false
	if !c.cfg.Resumable || c.first || c.closed || c.unlogged {
		return false
	}
	c.last, c.void = noBlock, true
	c.stats, c.statsDone = CacheStats{}, false
	for i := range c.blocks {
		c.blocks[i].length = c.blocks[i].told
	}
	c.keepNone()
	c.only.suspend(c)
	c.kept = true
	return true
}

// suspend drops what is staged: without a copy the guest's memory is all that is
// kept, and own is what it differs in from the last checkpoint.
func (o *stagedOnly) suspend(c *Cache) {
	if !o.on {
		return
	}
	for i := range c.blocks {
		b := &c.blocks[i]
		clear(b.staged)
		clear(b.data)
		clear(b.only.keep)
	}
	o.ownRead, o.stale, o.swept = false, false, false
	o.release(c, func(*cacheBlock, int) uint64 { return 0 })
}

// Resumable reports whether the cache holds what another session can go on from: with
// CacheConfig.Resumable, what was committed last, after a Discard.
func (c *Cache) Resumable() bool { return c.kept }

// Resume begins a session with the primary of the last one, which will send all that
// it has written since the checkpoint that was committed last here, and what it had
// sent that was not committed ([Saver.Resume]). It reports whether it can. NewSession
// is called after it, as for each session.
//
// A cache that keeps no copy (CacheConfig.StagedOnly) lacks besides what its own guest
// has written: [Cache.SaveDirty] between Resume and NewSession writes the list, for
// the saver's LoadDirty between its Resume and SaveSetup.
func (c *Cache) Resume() bool {
	if !c.kept {
		return false
	}
	c.void, c.kept, c.resumed = false, false, true
	return true
}
