package ram

import "math/bits"

// hotFor is in how many rounds a page that was found hot is tried again.
const hotFor = 16

// aheadCount says what became of the pages that were sent ahead.
type aheadCount struct{ pages, again uint64 }

// BeginAhead says that the SaveIterate calls up to the next SaveComplete send memory ahead of
// a checkpoint, while the guest runs. Pending(true) comes before it. They leave out the pages
// that are hot: of those that an earlier round sent ahead, the ones that the guest had written
// again when it stood still, so that they went twice. Hot pages go with the checkpoint alone.
// A sixteenth of them is tried again in each round, and one that the guest has not written
// since the last checkpoint is hot no more. It makes a Saver a colo.AheadSender.
func (s *Saver) BeginAhead() {
	if s.bad != nil {
		return
	}
	s.endAhead()
	s.abandon()
	s.ahead, s.sent = true, aheadCount{}
	for i := range s.blocks {
		b := &s.blocks[i]
		for w, hot := range b.hot {
			if hot == 0 {
				continue
			}
			// Another sixteenth of each word in each round.
			b.hot[w] = hot & b.dirty[w] &^ (0x0001000100010001 << (s.aheads % hotFor))
		}
	}
	s.aheads++
	s.countSpared()
}

// countSpared counts the dirty pages that SaveIterate leaves out.
func (s *Saver) countSpared() {
	s.spared = 0
	if !s.ahead {
		return
	}
	for i := range s.blocks {
		b := &s.blocks[i]
		for w, hot := range b.hot {
			s.spared += bits.OnesCount64(hot & b.dirty[w])
		}
	}
}

// Ahead returns how many pages were sent ahead of the last checkpoint, and how many of those
// had to be sent again with it.
func (s *Saver) Ahead() (pages, again uint64) { return s.sent.pages, s.sent.again }

// endAhead ends a round of sending ahead, and finds the pages that went twice: taken has those
// that the checkpoint sent.
func (s *Saver) endAhead() {
	if !s.ahead {
		return
	}
	s.ahead, s.spared = false, 0
	for i := range s.blocks {
		b := &s.blocks[i]
		for w, early := range b.early {
			if early == 0 {
				continue
			}
			twice := early & b.taken[w]
			b.hot[w] |= twice
			s.sent.again += uint64(bits.OnesCount64(twice))
			b.early[w] = 0
		}
	}
}
