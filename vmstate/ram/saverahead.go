package ram

import "math/bits"

// hotFor is before how many checkpoints a page that was found hot is tried again.
const hotFor = 16

// aheadCount says what became of the pages that were sent ahead.
type aheadCount struct{ pages, again uint64 }

// BeginAhead says that the SaveIterate calls up to the next SaveComplete send memory ahead of a
// checkpoint, while the guest runs. Pending(true) comes before it. They leave out the pages
// that are hot: of those that were sent ahead, before this checkpoint or an earlier one, the
// ones that the guest had written again when the log was next read or it stood still, so that
// they went twice; and the pages that the dirty log leaves writable (SaverConfig.KeepAfter),
// which go with the checkpoint in any case. Hot pages go with the checkpoint alone. A sixteenth
// of them is tried again before each checkpoint, and one that the guest has not written from
// one checkpoint to the next is hot no more. It makes a Saver a colo.AheadSender.
//
// It may be called again before that SaveComplete, after another Pending(true): what is sent
// then is counted with what was before.
func (s *Saver) BeginAhead() { s.beginAhead(0) }

// BeginRounds says that the SaveIterate calls up to the next SaveComplete send all that is
// dirty, in rounds that each begin with a Pending(true), the first of them after this call, so
// that little is left for a pause that follows at once. They leave out nothing that BeginAhead
// would, and the dirty log leaves no page writable (SaverConfig.KeepAfter) until that
// SaveComplete. It makes a Saver a colo.RoundSender.
func (s *Saver) BeginRounds() {
	if s.bad != nil {
		return
	}
	s.abandon()
	if !s.ahead {
		s.sent = aheadCount{}
	}
	s.rounds, s.most = true, 0
	s.keepNone()
	s.countSpared()
}

// BeginEarly does what BeginAhead does, for SaveIterate calls that send about most bytes
// each, in place of SaverConfig.IterateBytes, until BeginAhead or SaveComplete. It returns
// how many bytes of memory they have to send. It makes a Saver a colo.EarlySender.
func (s *Saver) BeginEarly(most int) uint64 {
	s.beginAhead(most)
	return uint64(s.dirty-s.spared) * PageSize
}

// Differences reports whether pages may go as differences (SaverConfig.XBZRLE).
func (s *Saver) Differences() bool { return s.deltas != nil }

func (s *Saver) beginAhead(most int) {
	if s.bad != nil {
		return
	}
	s.abandon()
	s.rounds, s.most = false, most
	if s.ahead {
		s.findHot(func(b *saverBlock) Bitmap { return b.dirty })
	} else {
		s.ahead, s.sent = true, aheadCount{}
		for i := range s.blocks {
			for w := range s.blocks[i].hot {
				// Another sixteenth of each word before each checkpoint.
				s.blocks[i].hot[w] &^= 0x0001000100010001 << (s.aheads % hotFor)
			}
		}
		s.aheads++
	}
	s.countSpared()
}

// findHot finds the pages that were sent ahead and have to go again, which again names.
func (s *Saver) findHot(again func(*saverBlock) Bitmap) {
	for i := range s.blocks {
		b := &s.blocks[i]
		list := again(b)
		for w, early := range b.early {
			twice := early & list[w]
			if twice == 0 {
				continue
			}
			b.hot[w] |= twice
			b.early[w] &^= twice
			s.sent.again += uint64(bits.OnesCount64(twice))
		}
	}
}

// countSpared counts the dirty pages that SaveIterate leaves out.
func (s *Saver) countSpared() {
	s.spared = 0
	if !s.ahead || s.rounds {
		return
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		for w, dirty := range b.dirty {
			if dirty != 0 {
				s.spared += bits.OnesCount64(dirty & (b.hot[w] | b.keep.word(w)))
			}
		}
	}
}

// spares reports whether SaveIterate leaves page i out.
func (b *saverBlock) spares(i int) bool {
	return (b.hot[i>>6]|b.keep.word(i>>6))>>(i&63)&1 != 0
}

// Ahead returns how many pages were sent ahead of the last checkpoint, or have been of the
// next one, and how many of those were sent again, or have to be.
func (s *Saver) Ahead() (pages, again uint64) { return s.sent.pages, s.sent.again }

// endAhead ends the sending ahead of a checkpoint, and finds the pages that went twice: taken
// has those that the checkpoint sent.
func (s *Saver) endAhead() {
	s.rounds = false
	if !s.ahead {
		return
	}
	s.ahead, s.spared, s.most = false, 0, 0
	s.findHot(func(b *saverBlock) Bitmap { return b.taken })
	for i := range s.blocks {
		b := &s.blocks[i]
		for w := range b.hot {
			// Whatever the guest has written went early, or with the checkpoint.
			b.hot[w] &= b.early[w] | b.taken[w]
			b.early[w] = 0
		}
	}
}
