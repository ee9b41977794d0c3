package ram

// A page that is sent as differences costs more than one that is copied: it is compared
// with what the peer has, and kept for the next time. deltaMark remembers of a page
// whether that pays.
type deltaMark struct {
	skip  uint8 // times that the page goes whole before it is kept again
	level uint8 // times in turn that its difference was too long
}

const (
	// patient is how often in a row the difference of a page may be too long before the
	// page goes whole: the guest may write all of a page now and then, and only a
	// little of it otherwise.
	patient = 2
	// firstWhole and maxWhole say how often a page then goes whole: first 4 times, later
	// up to 64.
	firstWhole, maxWhole = 4, 64
)

// tooLong records that a difference was too long, and reports whether the page is to
// be forgotten.
func (m *deltaMark) tooLong() bool {
	m.level++
	if m.level < patient {
		return false
	}
	m.skip = uint8(min(firstWhole<<(m.level-patient), maxWhole))
	m.level = min(m.level, patient+4)
	return true
}

// asDelta reports whether page i of block bi is to be sent as a difference, or kept so
// that it can be the next time.
func (s *Saver) asDelta(bi, i int) bool {
	if s.deltas == nil || !s.sendDeltas {
		return false
	}
	b := &s.blocks[bi]
	if b.marks == nil {
		b.marks = make([]deltaMark, len(b.Host)/PageSize)
	}
	m := &b.marks[i]
	if m.skip > 0 {
		m.skip--
		return false
	}
	return true
}

// fits records that the difference of a page was short enough.
func (s *Saver) fits(bi, i int) { s.blocks[bi].marks[i] = deltaMark{} }

// tooLong records that the difference of a page was too long, and reports
// whether kept is to become the page.
func (s *Saver) tooLong(bi, i int) (keep bool) {
	if s.blocks[bi].marks[i].tooLong() {
		s.deltas.Drop(pageKey(bi, i))
		return false
	}
	return true
}

// maxDelta returns the length from which on a page goes whole. Beside the stream that is half a
// page: a whole page may be compressed there, and keeps nothing else waiting.
func (s *Saver) maxDelta() int {
	if s.elsewhere != nil {
		return PageSize / 2
	}
	return PageSize
}
