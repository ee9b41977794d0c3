package ram

// What a Saver keeps writable is found out with each checkpoint that was sent, while the guest
// runs: the pause has no more to do than before. A checkpoint that fails, or is given up,
// says nothing.

// keepWritten counts the pages that were written before a checkpoint. It leaves out pages
// that were sent ahead and not again: the log was read after their last write.
func (s *Saver) keepWritten() {
	if !s.keep.on() {
		return
	}
	s.keep.next()
	for i := range s.blocks {
		if b := &s.blocks[i]; len(b.mem) > 0 {
			s.keep.note(b.Name, &b.keep, b.taken)
		}
	}
}

// keepNone has the log leave no page writable any more. The next reading of the log reports
// the pages that it did leave writable.
func (s *Saver) keepNone() {
	for i := range s.blocks {
		if b := &s.blocks[i]; len(b.mem) > 0 {
			s.keep.release(b.Name, &b.keep)
		}
	}
}

// Kept returns the counts of pages that the dirty log leaves writable, and of those sent
// for nothing because of that: see SaverConfig.KeepAfter.
func (s *Saver) Kept() KeepStats { return s.keep.stats }

// word returns the pages of a word that are kept, or tried.
func (p *keptPages) word(w int) uint64 {
	if p.kept == nil {
		return 0
	}
	return p.kept[w]
}
