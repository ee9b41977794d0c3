package ram

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// eachAhead runs fn with a saver and each way of taking the rest of a checkpoint.
func eachAhead(t *testing.T, fn func(t *testing.T, cfg SaverConfig, rest func(*link, *Saver))) {
	captured := func(l *link, s *Saver) {
		capture(l.t, s)
		l.complete(s)
	}
	fromGuest := func(l *link, s *Saver) { l.complete(s) }
	small := SaverConfig{MaxCapture: 1} // one chunk
	for name, way := range map[string]struct {
		cfg  SaverConfig
		rest func(*link, *Saver)
	}{
		"captured":     {SaverConfig{}, captured},
		"in part":      {small, captured},
		"from memory":  {SaverConfig{}, fromGuest},
		"differences":  {SaverConfig{XBZRLE: 1 << 20}, captured},
		"small pieces": {SaverConfig{IterateBytes: 3 * PageSize}, captured},
	} {
		if testing.Short() && (name == "in part" || name == "small pieces") {
			continue
		}
		t.Run(name, func(t *testing.T) { fn(t, way.cfg, way.rest) })
	}
}

// sendAhead sends pages while the guest runs, as a primary does.
func sendAhead(t *testing.T, l *link, s *Saver) {
	t.Helper()
	s.Pending(true)
	s.BeginAhead()
	for n := 0; !l.iterate(s); n++ {
		if n > 10000 {
			t.Fatal("sending ahead does not end")
		}
	}
}

func TestPagesThatAreWrittenAllTheTimeGoOnceWithEachCheckpoint(t *testing.T) {
	t.Parallel()
	eachAhead(t, func(t *testing.T, cfg SaverConfig, rest func(*link, *Saver)) {
		const hot, cold, rounds = 160, 320, 12
		prim := newGuest(t, pages(t, "ram", 600), pages(t, "vga", 20))
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, cfg), newCache(t, sec, CacheConfig{}), newLink(t)
		r := rand.New(rand.NewPCG(1, 1))
		l.sync(s, c)
		write := func(from, to int) {
			for i := from; i < to; i++ {
				prim.write(0, i*PageSize+r.IntN(4000), byte(r.Uint32()), byte(i))
			}
		}
		var sent uint64
		for n := range rounds {
			write(0, hot+cold)
			sendAhead(t, l, s)
			write(0, hot) // the guest runs meanwhile
			rest(l, s)
			l.load(c)
			flush(t, c)
			wantSame(t, fmt.Sprintf("round %d", n), sec, prim)
			pages, again := s.Ahead()
			switch {
			case n == 0:
				if pages != hot+cold || again != hot {
					t.Errorf("first %d pages went ahead and %d again", pages, again)
				}
			case pages != cold+again || again != hot/hotFor:
				t.Errorf("round %d: %d pages went ahead, %d again; want %d tried again", n, pages, again, hot/hotFor)
			}
			if n > 0 {
				sent += s.Stats().Pages
			}
		}
		if most := uint64((rounds - 1) * (hot + hot/hotFor + cold)); sent > most {
			t.Errorf("%d pages were sent, want at most %d", sent, most)
		}
		// What cools down is sent ahead again.
		for range 2 {
			write(hot/2, hot+cold)
			sendAhead(t, l, s)
			rest(l, s)
		}
		write(0, hot)
		sendAhead(t, l, s)
		if pages, _ := s.Ahead(); pages < hot/2 {
			t.Errorf("%d pages went ahead of %d that were written but once", pages, hot/2)
		}
	})
}

func TestNothingIsLostWhateverIsLeftOutAhead(t *testing.T) {
	t.Parallel()
	eachAhead(t, func(t *testing.T, cfg SaverConfig, rest func(*link, *Saver)) {
		prim := newGuest(t, pages(t, "ram", 200), pages(t, "vga", 70))
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, cfg), newCache(t, sec, CacheConfig{}), newLink(t)
		r := rand.New(rand.NewPCG(2, 2))
		prim.scribble(r, 100)
		l.sync(s, c)
		rounds := 40
		if testing.Short() {
			rounds = 12
		}
		for n := range rounds {
			prim.scribble(r, r.IntN(60))
			if r.IntN(4) > 0 {
				s.Pending(true)
				s.BeginAhead()
				for done := false; !done && r.IntN(20) > 0; {
					done = l.iterate(s)
					prim.scribble(r, r.IntN(20))
				}
				if r.IntN(8) == 0 {
					s.Pending(true)
					l.iterate(s)
				}
			}
			if r.IntN(8) == 0 {
				capture(t, s) // is given up
			}
			rest(l, s)
			want := prim.snapshot()
			if pages, again := s.Ahead(); again > pages {
				t.Errorf("%d pages of %d went again", again, pages)
			}
			l.load(c)
			flush(t, c)
			wantMemory(t, fmt.Sprintf("round %d", n), sec, want)
		}
	})
}

func TestASessionAfterABrokenOneLeavesNothingOut(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 100))
	sec := prim.twin(t)
	s, c, l := NewSaver(prim.blocks, prim, SaverConfig{}), newCache(t, sec, CacheConfig{}), newLink(t)
	r := rand.New(rand.NewPCG(3, 3))
	l.sync(s, c)
	for range 3 { // all of it is hot
		prim.scribble(r, 1000)
		sendAhead(t, l, s)
		prim.scribble(r, 1000)
		l.complete(s)
	}
	l.load(c)
	flush(t, c)
	prim.scribble(r, 50)
	s.Pending(true)
	s.BeginAhead()
	broken := qemufile.NewWriter(failing{})
	if err := s.SaveComplete(broken); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	s.SaveCleanup()
	sec = prim.twin(t)
	c, l = newCache(t, sec, CacheConfig{}), newLink(t)
	l.sync(s, c)
	wantSame(t, "after a broken session", sec, prim)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
