package ram

import "testing"

// iterateAll sends until nothing is known to be dirty.
func iterateAll(t *testing.T, l *link, s *Saver) {
	t.Helper()
	for n := 0; !l.iterate(s); n++ {
		if n > 10000 {
			t.Fatal("a round does not end")
		}
	}
}

// Before a guest is handed over, pages that are written before each checkpoint are sent while it
// runs like all others: those of which BeginAhead knows, and those that stay writable.
func TestRoundsLeaveToThePauseWhatWasWrittenInTheLastOnly(t *testing.T) {
	for _, after := range []int{-1, 2} {
		p, q, s, c, l := keepers(t, SaverConfig{KeepAfter: after}, CacheConfig{KeepAfter: after})
		for range 6 {
			for page := range 40 {
				p.touch(page)
			}
			s.Pending(true)
			s.BeginAhead()
			iterateAll(t, l, s)
			for page := range 20 { // these are hot
				p.touch(page)
			}
			keptCheckpoint(t, s, c, l)
		}
		for page := range 60 {
			p.touch(page)
		}
		s.BeginRounds()
		for round, want := range []uint64{60, 8, 1} {
			if left, _ := s.Pending(true); left != want*PageSize {
				t.Errorf("KeepAfter %d: round %d begins with %d pages, want %d", after, round, left/PageSize, want)
			}
			iterateAll(t, l, s)
			if left, _ := s.Pending(false); left != 0 {
				t.Errorf("KeepAfter %d: round %d has left out %d pages", after, round, left/PageSize)
			}
			for page := range []int{8, 1, 1}[round] {
				p.touch(page)
			}
		}
		want, before := p.snapshot(), s.Stats().Pages
		if sent := keptCheckpoint(t, s, c, l) - before; sent != 1 {
			t.Errorf("KeepAfter %d: %d pages are left to the pause, want 1", after, sent)
		}
		wantMemory(t, "after the rounds", q.guest, want)

		p.touch(0) // and then it is as before
		p.touch(1)
		s.Pending(true)
		s.BeginAhead()
		if left, _ := s.Pending(false); left != 2*PageSize || s.spared == 0 {
			t.Errorf("KeepAfter %d: %d bytes are dirty, %d pages of them left out", after, left, s.spared)
		}
	}
}

// Whoever iterates until nothing is dirty gets there, also right after the checkpoint that was
// the first to leave pages writable.
func TestMemoryIsSentToTheEndThoughPagesHaveJustBeenNamed(t *testing.T) {
	p, _, s, c, l := keepers(t, SaverConfig{KeepAfter: 1}, CacheConfig{})
	p.touch(5)
	keptCheckpoint(t, s, c, l)
	if len(p.names()) != 1 || s.Kept().Pages != 0 {
		t.Fatalf("pages %v are named, and %+v", p.names(), s.Kept())
	}
	p.touch(5)
	s.Pending(true)
	iterateAll(t, l, s)
	s.Pending(true) // it may have been written until it was protected
	iterateAll(t, l, s)
	if left, _ := s.Pending(true); left != 0 {
		t.Errorf("%d bytes of a guest that stands still are dirty for ever", left)
	}
}
