package ram

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// keeper is a guest with a log like KVM's that is cleared by hand: a page that is written
// costs a fault and is in the log, and only reading the log while the page is not named
// takes it out and protects it again.
type keeper struct {
	*guest
	named  map[string]Bitmap
	faults int
	cannot bool
}

func newKeeper(g *guest) *keeper { return &keeper{guest: g, named: make(map[string]Bitmap)} }

func (k *keeper) KeepDirty(block string, pages []uint64) bool {
	delete(k.named, block)
	if k.cannot || pages == nil || k.dirty[block] == nil {
		return false
	}
	k.named[block] = slices.Clone(Bitmap(pages))
	return true
}

func (k *keeper) ReadDirty(block string, bitmap []uint64) error {
	log := slices.Clone(k.dirty[block])
	if err := k.guest.ReadDirty(block, bitmap); err != nil {
		return err
	}
	for i, w := range log {
		if named := k.named[block]; named != nil {
			k.dirty[block][i] = w & named[i]
		}
	}
	return nil
}

func (k *keeper) StopDirtyLog() error { clear(k.named); return k.guest.StopDirtyLog() }

// write is a write by the guest.
func (k *keeper) write(block, off int, p ...byte) {
	if !k.dirty[k.blocks[block].Name].Has(off / PageSize) {
		k.faults++
	}
	k.guest.write(block, off, p...)
}

// touch changes one page of the first block.
func (k *keeper) touch(page int) { k.write(0, page*PageSize, k.blocks[0].Host[page*PageSize]+1) }

// names returns the pages of the first block that are named.
func (k *keeper) names() []int { return slices.Collect(k.named[k.blocks[0].Name].All()) }

// keepers returns a primary with hot pages, and its secondary, after the first synchronisation.
func keepers(t *testing.T, saver SaverConfig, cache CacheConfig) (p, q *keeper, s *Saver, c *Cache, l *link) {
	g := newGuest(t, pages(t, "ram", 130), pages(t, "more", 64))
	p, q = newKeeper(g), newKeeper(g.twin(t))
	s, l = NewSaver(p.blocks, p, saver), newLink(t)
	c, err := NewCache(q.blocks, q, cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.Resent()
	l.sync(s, c)
	return p, q, s, c, l
}

// keptCheckpoint copies the memory of the primary to the secondary, and returns the number of
// pages that it sent.
func keptCheckpoint(t *testing.T, s *Saver, c *Cache, l *link) (sent uint64) {
	t.Helper()
	tell(t, c, s)
	if !capture(t, s) {
		t.Fatal("the capture is not whole")
	}
	l.complete(s)
	l.load(c)
	flush(t, c)
	if err := c.Settle(); err != nil {
		t.Fatal(err)
	}
	return s.Stats().Pages
}

// Whatever is kept, tried, sent ahead or given up, after each checkpoint both guests are the
// same: with pages that are always written, some that are often, and some at random, on both
// sides. And the faults are fewer than without.
func TestGuestsAreTheSameWhateverStaysWritable(t *testing.T) {
	t.Parallel()
	settings := []int{-1, 1, 2, 0, 7}
	if testing.Short() {
		settings = []int{-1, 0}
	}
	for _, only := range []bool{false, true} {
		for _, deltas := range []int64{0, 1 << 20} {
			t.Run(fmt.Sprintf("staged only %v, deltas %d", only, deltas), func(t *testing.T) {
				faults := map[int]int{}
				for _, after := range settings {
					p, q, s, c, l := keepers(t, SaverConfig{KeepAfter: after, XBZRLE: deltas}, CacheConfig{KeepAfter: after, StagedOnly: only})
					r := rand.New(rand.NewPCG(1, 2))
					run := func(g *keeper) {
						for page := range 20 {
							g.touch(page)
						}
						for page := 20; page < 40; page++ {
							if r.IntN(10) > 0 {
								g.touch(page)
							}
						}
						for range 6 {
							g.write(r.IntN(2), r.IntN(64)*PageSize+r.IntN(4000), byte(r.Uint32()))
						}
					}
					want := p.snapshot()
					for n := range 120 {
						run(p)
						if n%3 == 1 && c.TakesEarly(deltas > 0) > 0 { // memory goes ahead
							s.Pending(true)
							s.BeginAhead()
							for !l.iterate(s) {
							}
							run(p)
						}
						if n%7 == 3 { // a capture that is given up
							capture(t, s)
							run(p)
						}
						run(q)
						p.remember(want)
						keptCheckpoint(t, s, c, l)
						wantMemory(t, fmt.Sprintf("after %d: checkpoint %d", after, n), q.guest, want)
					}
					faults[after] = p.faults + q.faults
					if k := s.Kept(); after == 0 && (k.Pages < 15 || k.Tried == 0 || k.Idle == 0 || k.Idle > k.Tried) {
						t.Errorf("the saver says %+v", k)
					}
					if k := c.Kept(); after == 0 && (k.Pages < 15 || k.Tried == 0) {
						t.Errorf("the cache says %+v", k)
					}
				}
				if faults[0]*2 > faults[-1] || faults[1] >= faults[-1] || faults[7] >= faults[-1] {
					t.Errorf("faults by SaverConfig.KeepAfter: %v", faults)
				}
			})
		}
	}
}

// A page that is written before each checkpoint costs a fault once in sixteen; and when it is
// written no more it is sent as often at most, on both sides.
func TestAPageThatIsAlwaysWrittenIsTriedOnceInSixteenCheckpoints(t *testing.T) {
	p, q, s, c, l := keepers(t, SaverConfig{}, CacheConfig{})
	for range 8 {
		p.touch(5)
		q.touch(7)
		keptCheckpoint(t, s, c, l)
	}
	if got := p.names(); !slices.Equal(got, []int{5}) {
		t.Fatalf("pages %v stay writable, want page 5", got)
	}
	p.faults, q.faults = 0, 0
	for range 10 * keepTries {
		p.touch(5)
		q.touch(7)
		if n := keptCheckpoint(t, s, c, l); n != 1 {
			t.Fatalf("%d pages in a checkpoint, want 1", n)
		}
	}
	if p.faults != 10 || q.faults != 10 {
		t.Errorf("%d and %d faults in 160 checkpoints, want 10", p.faults, q.faults)
	}
	var sent, undone int
	for range 3 * keepTries {
		sent += int(keptCheckpoint(t, s, c, l))
		undone += int(c.Stats().Flushed)
	}
	if sent < 1 || sent > keepTries+1 || undone > 2*(keepTries+1) {
		t.Errorf("a page that is written no more was sent %d times, and two rolled back %d times", sent, undone)
	}
	if len(p.names())+len(q.names()) > 0 || s.Kept().Pages+c.Kept().Pages > 0 {
		t.Errorf("pages %v and %v stay writable", p.names(), q.names())
	}
	if k := s.Kept(); k.Idle < 1 || k.Idle > 4 || k.Tried < 10 {
		t.Errorf("the saver says %+v", k)
	}
	if got := keptCheckpoint(t, s, c, l) + c.Stats().Flushed; got > 0 {
		t.Errorf("%d pages in a checkpoint of guests that stand still", got)
	}
}

// A page stays writable from the checkpoint on that is the last of as many in turn as was
// asked for.
func TestAPageStaysWritableAfterAsManyCheckpointsInTurn(t *testing.T) {
	for after := 1; after <= maxKeepAfter; after++ {
		p, _, s, c, l := keepers(t, SaverConfig{KeepAfter: after}, CacheConfig{})
		for n := 1; n <= after+2; n++ {
			p.touch(6)
			keptCheckpoint(t, s, c, l)
			if got := len(p.names()) == 1; got != (n >= after) && (s.keep.round%keepTries != 6) {
				t.Errorf("KeepAfter %d: after %d checkpoints the page stays writable: %v", after, n, got)
			}
		}
	}
}

// A guest that does less between two checkpoints than it does in turn, since it has to fault
// for each page, would stay as slow as that if a page that was left out once had to begin anew.
func TestAPageOfEverySecondCheckpointStaysWritable(t *testing.T) {
	for parity := range 2 {
		p, _, s, c, l := keepers(t, SaverConfig{KeepAfter: 1}, CacheConfig{})
		for n := range 10 * keepTries {
			if n%2 == parity {
				p.touch(5)
			}
			keptCheckpoint(t, s, c, l)
		}
		if p.faults > 10+2 || !slices.Equal(p.names(), []int{5}) {
			t.Errorf("parity %d: %d faults of 80 writes, pages %v stay writable", parity, p.faults, p.names())
		}
	}
}

// What is counted, against a model of one page at a time: writes, gaps and trials as they come.
func TestPagesAreCountedEachForItself(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for after := 1; after <= maxKeepAfter; after++ {
		k := newKeeping(keepsAnything{}, after)
		var p keptPages
		var model [64]struct {
			count            int
			kept, pass, open bool
		}
		for range 2000 {
			written := NewBitmap(64)
			for i := range model {
				if r.IntN(64) < i || model[i].open {
					written.Set(i)
				}
			}
			k.next()
			k.note("ram", &p, written)
			for i := range model {
				m := &model[i]
				switch {
				case !written.Has(i):
					m.count = max(m.count-2, 0)
				case !m.open:
					if m.count = min(m.count+1, 7); m.count >= after {
						m.count = 7
					}
				}
				m.kept = m.count >= after || m.kept && m.count > 0
				m.open = written.Has(i) && m.pass
				m.pass = m.kept && k.round%keepTries != i%keepTries
				if p.kept.Has(i) != m.kept || p.pass.Has(i) != m.pass || p.open.Has(i) != m.open {
					t.Fatalf("KeepAfter %d, round %d, page %d: want %+v", after, k.round, i, *m)
				}
			}
		}
	}
}

// hot has both guests write the same four pages before each of six checkpoints, after which
// those pages must stay writable.
func hot(t *testing.T, p, q *keeper, s *Saver, c *Cache, l *link) {
	t.Helper()
	for range 6 {
		for page := range 4 {
			p.touch(page)
			q.touch(page)
		}
		keptCheckpoint(t, s, c, l)
	}
	if len(p.names()) == 0 || len(q.names()) == 0 {
		t.Fatal("no page stays writable")
	}
}

// A migration that sends memory until none is dirty comes to an end.
func TestLiveRoundsEndThoughPagesStayedWritable(t *testing.T) {
	p, q, s, c, l := keepers(t, SaverConfig{}, CacheConfig{})
	hot(t, p, q, s, c, l)
	for range 3 {
		s.Pending(true)
		for !l.iterate(s) {
		}
	}
	s.Pending(true)
	if left, _ := s.Pending(false); left > 0 {
		t.Errorf("%d bytes are dirty of a guest that stands still", left)
	}
	want := p.snapshot()
	keptCheckpoint(t, s, c, l)
	wantMemory(t, "after rounds", q.guest, want)
}

// A page that goes with the checkpoint in any case does not go ahead of it.
func TestPagesThatStayWritableAreNotSentAhead(t *testing.T) {
	p, q, s, c, l := keepers(t, SaverConfig{}, CacheConfig{})
	hot(t, p, q, s, c, l)
	for page := range 4 {
		p.touch(page)
	}
	p.touch(100)
	s.Pending(true)
	s.BeginAhead()
	for !l.iterate(s) {
	}
	if pages, _ := s.Ahead(); pages != 1 {
		t.Errorf("%d pages were sent ahead, want 1", pages)
	}
	want := p.snapshot()
	if n := keptCheckpoint(t, s, c, l); n != 1+4 {
		t.Errorf("%d pages with what was sent ahead, want 5", n)
	}
	wantMemory(t, "sent ahead", q.guest, want)
}

// However a session ends, the next one finds the log as before the first: no page stays named.
func TestNothingStaysWritableWhenASessionEnds(t *testing.T) {
	for name, end := range map[string]func(*Saver, *Cache){
		"both end":              func(s *Saver, c *Cache) { s.SaveCleanup(); c.Discard() },
		"both begin anew":       func(s *Saver, c *Cache) { s.NewSession(); c.NewSession() },
		"the cache is closed":   func(s *Saver, c *Cache) { s.SaveCleanup(); c.Close() },
		"resumable ones go on":  func(s *Saver, c *Cache) { s.SaveCleanup(); c.Discard() },
		"the saver begins anew": func(s *Saver, c *Cache) { s.SaveSetup(newLink(t).w); c.Discard() },
	} {
		t.Run(name, func(t *testing.T) {
			resumable := name == "resumable ones go on"
			p, q, s, c, l := keepers(t, SaverConfig{Resumable: resumable}, CacheConfig{Resumable: resumable})
			hot(t, p, q, s, c, l)
			end(s, c)
			if len(p.named)+len(q.named) > 0 {
				t.Errorf("%v and %v stay writable", p.named, q.named)
			}
			if s.Kept().Pages+c.Kept().Pages > 0 {
				t.Error("the figures say that pages do")
			}
		})
	}
}

// A log that leaves nothing writable, and a limit that says so, change nothing.
func TestALogThatKeepsNothingIsAskedNowAndThen(t *testing.T) {
	p, _, s, c, l := keepers(t, SaverConfig{}, CacheConfig{KeepAfter: -1})
	p.cannot = true
	for range 20 {
		p.touch(5)
		keptCheckpoint(t, s, c, l)
	}
	if k := s.Kept(); k.Pages > 0 {
		t.Errorf("%d pages are said to stay writable", k.Pages)
	}
	s.Pending(true)
	p.touch(5)
	s.Pending(true)
	s.BeginAhead()
	for !l.iterate(s) {
	}
	p.cannot = false
	for range 6 {
		p.touch(5)
		keptCheckpoint(t, s, c, l)
	}
	if got := p.names(); !slices.Equal(got, []int{5}) {
		t.Errorf("pages %v stay writable, want page 5", got)
	}
}

func TestFindingThePagesThatStayWritableAllocatesNothing(t *testing.T) {
	k, written := newKeeping(keepsAnything{}, 0), NewBitmap(1000)
	var p keptPages
	k.note("ram", &p, written)
	n := 0
	if allocs := testing.AllocsPerRun(100, func() {
		k.next()
		n++
		written.SetRange(n, n+500)
		k.note("ram", &p, written)
		clear(written)
	}); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
	if k.stats.Pages == 0 {
		t.Error("no page stays writable")
	}
}

type keepsAnything struct{ DirtyLog }

func (keepsAnything) KeepDirty(string, []uint64) bool { return true }
