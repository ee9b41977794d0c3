package ram

import (
	"math/bits"
	"time"

	"github.com/gocolo/lockstep/qemufile"
)

// Capture reads the dirty log of the paused guest and copies the dirty pages
// into the capture arena, as the records that SaveComplete will send. whole
// means that the guest may run before SaveComplete; otherwise the arena is full
// (SaverConfig.MaxCapture) and SaveComplete reads the rest from the guest's
// memory.
//
// If Capture, SaveIterate, SaveSetup or SaveCleanup is called before
// SaveComplete has sent a capture, the capture is given up: its pages count as
// dirty again. The writer that the last SaveComplete wrote to must have been
// flushed.
func (s *Saver) Capture() (whole bool, err error) {
	if err := s.ready(); err != nil {
		return false, err
	}
	s.abandon()
	s.begin()
	if err := s.sync(); err != nil {
		return false, err
	}
	s.beforeCapture = s.stats
	if s.elsewhere != nil {
		s.last = noBlock // the records will not all be in the stream
	}
	s.captured, s.whole = true, true
	begun, pages := time.Now(), s.dirty
	if s.captureTogether() {
		s.dirty = 0
		s.trial.of(pages).saw(true, pages, time.Since(begun))
		return true, nil
	}
	for bi := range s.blocks {
		if !s.captureBlock(bi) {
			s.whole = false
			s.dirty = 0
			for i := bi; i < len(s.blocks); i++ {
				s.dirty += s.blocks[i].dirty.Count()
			}
			return false, nil
		}
	}
	s.dirty = 0
	if pages >= fewestPages {
		s.trial.of(pages).saw(false, pages, time.Since(begun))
	}
	return true, nil
}

// captureBlock moves the block's dirty pages to the arena, and their bits from
// dirty to taken. It reports whether all of them fitted.
func (s *Saver) captureBlock(bi int) bool {
	b := &s.blocks[bi]
	for wi, word := range b.dirty {
		for m := word; m != 0; m &= m - 1 {
			if !s.capture(bi, wi<<6|bits.TrailingZeros64(m)) {
				b.dirty[wi] = m
				b.taken[wi] |= word &^ m
				b.send(wi, word&^m)
				return false
			}
		}
		if word != 0 {
			b.dirty[wi] = 0
			b.taken[wi] |= word
			b.send(wi, word)
		}
	}
	return true
}

// sendCaptured sends what was captured.
func (s *Saver) sendCaptured(w *qemufile.Writer) {
	beside := s.elsewhere != nil && s.captured
	bi := noBlock
	if beside {
		s.last = noBlock
	}
	put := func(records []byte) {
		if beside {
			bi = s.putCaptured(w, records, bi)
			return
		}
		w.WriteRef(records)
	}
	for i, n := range s.arena.used {
		put(s.arena.chunks[i][:n])
	}
	for _, p := range s.batches.parts {
		put(p)
	}
}

// abandon gives up a capture: its pages count as dirty again, and the peer gets
// nothing of it.
func (s *Saver) abandon() {
	if !s.captured {
		return
	}
	s.captured, s.whole = false, false
	s.arena.reset()
	s.batches.parts = s.batches.parts[:0]
	s.stats = s.beforeCapture
	s.untake()
}

// untake has the pages that were taken count as dirty again.
func (s *Saver) untake() {
	// The records named blocks that the peer will not hear of.
	s.last = noBlock
	s.dirty = 0
	for bi := range s.blocks {
		b := &s.blocks[bi]
		for wi, word := range b.taken {
			if word == 0 {
				continue
			}
			b.dirty[wi] |= word
			b.taken[wi] = 0
			if s.deltas == nil {
				continue
			}
			for ; word != 0; word &= word - 1 {
				s.deltas.Drop(pageKey(bi, wi<<6|bits.TrailingZeros64(word)))
			}
		}
		s.dirty += b.dirty.Count()
	}
}
