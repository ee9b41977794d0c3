package ram

import (
	"encoding/binary"

	"github.com/gocolo/lockstep/internal/xbzrle"
	"github.com/gocolo/lockstep/qemufile"
)

// send writes page i of block bi to w, from the guest's memory. mayBeZero says
// that it is worth looking whether the page is zero.
func (s *Saver) send(w *qemufile.Writer, bi, i int, mayBeZero bool) {
	b := &s.blocks[bi]
	off := i * PageSize
	page := b.mem[off : off+PageSize : off+PageSize]
	if mayBeZero && isZero(page) {
		s.forgetZero(bi, i)
		s.putHead(w, bi, uint64(off)|flagZero)
		w.PutByte(0)
		s.stats.ZeroPages++
		return
	}
	if !s.asDelta(bi, i) {
		if s.elsewhere != nil {
			s.stats.Pages++
			s.putElsewhere(w, bi, uint64(off), page)
			return
		}
		s.putHead(w, bi, uint64(off)|flagPage)
		w.WriteRef(page)
		return
	}
	// The guest may be writing the page: what leaves, and what is remembered
	// of it, must be one and the same copy.
	kept := s.deltas.Get(pageKey(bi, i))
	if kept == nil {
		kept = s.deltas.Put(pageKey(bi, i))
	} else if n, ok := xbzrle.Encode(s.delta[:s.maxDelta()], kept, page); ok {
		s.fits(bi, i)
		if n == 0 {
			s.stats.UnchangedPages++
			return
		}
		applyDelta(kept, s.delta[:n])
		s.putHead(w, bi, uint64(off)|flagXBZRLE)
		w.PutByte(encodingXBZRLE)
		w.PutBE16(uint16(n))
		w.Write(s.delta[:n])
		s.stats.XBZRLEPages++
		return
	} else if !s.tooLong(bi, i) {
		s.putHead(w, bi, uint64(off)|flagPage)
		w.WriteRef(page)
		return
	}
	copy(kept, page)
	s.putHead(w, bi, uint64(off)|flagPage)
	w.Write(kept)
}

// putHead writes the first word of a record, and its block if that is another
// than the last record's.
func (s *Saver) putHead(w *qemufile.Writer, bi int, word uint64) {
	s.stats.Pages++
	s.putWord(w, bi, word)
}

// putWord does what putHead does, for a record that has been counted.
func (s *Saver) putWord(w *qemufile.Writer, bi int, word uint64) {
	if s.last == bi {
		w.PutBE64(word | flagContinue)
		return
	}
	s.last = bi
	w.PutBE64(word)
	w.PutCountedString(s.blocks[bi].Name)
}

// capture copies page i of block bi into the arena as the record that will be
// sent, and reports whether there was room for it.
func (s *Saver) capture(bi, i int) bool {
	dst := s.arena.room()
	if dst == nil {
		return false
	}
	b := &s.blocks[bi]
	off := i * PageSize
	page := b.mem[off : off+PageSize : off+PageSize]
	if isZero(page) {
		s.forgetZero(bi, i)
		n := s.captureHead(dst, bi, uint64(off)|flagZero)
		dst[n] = 0
		s.stats.ZeroPages++
		s.arena.take(n + 1)
		return true
	}
	if s.asDelta(bi, i) {
		kept := s.deltas.Get(pageKey(bi, i))
		keep := true
		if kept == nil {
			kept = s.deltas.Put(pageKey(bi, i))
		} else if n, sent := s.captureDelta(dst, bi, uint64(off), kept, page); sent {
			s.fits(bi, i)
			s.arena.take(n)
			return true
		} else {
			keep = s.tooLong(bi, i)
		}
		if keep {
			copy(kept, page)
			page = kept // which is in the cache of the processor now
		}
	}
	n := s.captureHead(dst, bi, uint64(off)|flagPage)
	copy(dst[n:n+PageSize], page)
	s.arena.take(n + PageSize)
	return true
}

// captureDelta writes the record of the difference between kept and page into
// dst, and makes kept what the peer will have. It returns the record's length,
// which is 0 if there is no difference; sent is false if it is too long.
func (s *Saver) captureDelta(dst []byte, bi int, off uint64, kept, page []byte) (n int, sent bool) {
	h := 8
	if s.last != bi {
		h = 9 + len(s.blocks[bi].Name)
	}
	body := dst[h+3 : h+3+s.maxDelta()]
	n, ok := xbzrle.Encode(body, kept, page)
	if !ok {
		return 0, false
	}
	if n == 0 {
		s.stats.UnchangedPages++
		return 0, true
	}
	applyDelta(kept, body[:n])
	s.captureHead(dst, bi, off|flagXBZRLE)
	dst[h] = encodingXBZRLE
	binary.BigEndian.PutUint16(dst[h+1:], uint16(n))
	s.stats.XBZRLEPages++
	return h + 3 + n, true
}

// captureHead does what putHead does, but writes to dst; it returns the length.
func (s *Saver) captureHead(dst []byte, bi int, word uint64) int {
	s.stats.Pages++
	again := s.last == bi
	s.last = bi
	return recordHead(dst, s.blocks[bi].Name, word, again)
}

// recordHead writes a record's first word, and the name of its block unless that is the
// last record's; it returns the length.
func recordHead(dst []byte, block string, word uint64, again bool) int {
	if again {
		binary.BigEndian.PutUint64(dst, word|flagContinue)
		return 8
	}
	binary.BigEndian.PutUint64(dst, word)
	dst[8] = byte(len(block))
	return 9 + copy(dst[9:], block)
}

// pageKey names a page in the cache of pages sent.
func pageKey(bi, i int) uint64 { return uint64(bi)<<40 | uint64(i) }

// forgetZero keeps the cache of pages sent right when a page goes as ZERO.
func (s *Saver) forgetZero(bi, i int) {
	if s.deltas == nil {
		return
	}
	if kept := s.deltas.Get(pageKey(bi, i)); kept != nil {
		clear(kept)
	}
}

// applyDelta applies delta to kept, the page as the peer has it, as the peer
// will: kept is then the page as the peer will have it.
func applyDelta(kept, delta []byte) {
	if err := xbzrle.Decode(kept, delta); err != nil {
		panic("ram: internal error: " + err.Error()) // a delta of our own
	}
}
