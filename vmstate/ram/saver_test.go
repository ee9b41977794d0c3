package ram

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTripWithRandomDirtying(t *testing.T) {
	t.Parallel()
	eachCache(t, func(t *testing.T, k kind) {
		for _, cfg := range []struct {
			name string
			SaverConfig
		}{
			{"plain", SaverConfig{}},
			{"small arena, small steps", SaverConfig{MaxCapture: 10 * PageSize, IterateBytes: 5 * PageSize}},
			{"differences", SaverConfig{XBZRLE: 30 * PageSize}},
			{"differences of every page", SaverConfig{XBZRLE: 1 << 20, MaxCapture: 20 * PageSize}},
		} {
			t.Run(cfg.name, func(t *testing.T) {
				r := rand.New(rand.NewPCG(7, 8))
				guests, rounds := 2, 30
				if testing.Short() {
					guests, rounds = 1, 8
				}
				for range guests {
					prim := newGuest(t, pages(t, "pc.ram", 100), pages(t, "vga", 7), pages(t, "rom", 70))
					prim.scribble(r, 50)
					sec := prim.twin(t)
					sec.scribble(r, 50)
					s := NewSaver(prim.blocks, prim, cfg.SaverConfig)
					c := k.cache(t, sec, CacheConfig{})
					l := newLink(t)
					l.setup(s)
					for !l.iterate(s) || r.IntN(3) == 0 {
						if r.IntN(3) == 0 {
							prim.scribble(r, 10)
						}
						if r.IntN(2) == 0 {
							s.Pending(true)
						}
					}
					l.complete(s)
					want := prim.snapshot()
					l.load(c)
					flush(t, c)
					wantMemory(t, "after the initial synchronisation", sec, want)
					for range rounds {
						prim.scribble(r, r.IntN(60))
						sec.scribble(r, r.IntN(40))
						tell(t, c, s)
						if r.IntN(3) == 0 { // memory ahead
							s.Pending(true)
							for !l.iterate(s) && r.IntN(4) > 0 {
								prim.scribble(r, 3)
							}
						}
						switch r.IntN(4) {
						case 0: // not captured
							want = prim.snapshot()
						case 1: // captured, given up, and captured
							capture(t, s)
							prim.scribble(r, 10)
							fallthrough
						default:
							want = prim.snapshot()
							if capture(t, s) {
								prim.scribble(r, 10)
							}
						}
						l.complete(s)
						l.load(c)
						wantSameDeltas(t, s, c)
						flush(t, c)
						wantMemory(t, "after a checkpoint", sec, want)
					}
				}
			})
		}
	})
}

// wantSameDeltas compares the pages that differences are made from with those
// that they are applied to.
func wantSameDeltas(t *testing.T, s *Saver, c *Cache) {
	t.Helper()
	if s.deltas == nil {
		return
	}
	for bi := range s.blocks {
		for i := range len(s.blocks[bi].mem) / PageSize {
			kept := s.deltas.Get(pageKey(bi, i))
			if kept != nil && !bytes.Equal(kept, received(c, bi, i)) {
				t.Fatalf("page %d of block %q is kept as it was not sent", i, s.blocks[bi].Name)
			}
		}
	}
}

func TestDifferencesAreSentWhereTheyAreShorter(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		r := rand.New(rand.NewPCG(2, 2))
		prim := newGuest(t, pages(t, "a", 8), pages(t, "b", 1))
		for i := range 8 {
			prim.write(0, i*PageSize, randomPage(r)...)
		}
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 1 << 20}), k.cache(t, sec, CacheConfig{}), newLink(t)
		l.sync(s, c)
		step := func(captured bool, want Stats) {
			t.Helper()
			tell(t, c, s)
			if captured {
				capture(t, s)
			}
			l.complete(s)
			got := s.Stats()
			want.Bytes = got.Bytes
			if got != want || s.Pages() != want.Pages {
				t.Errorf("Stats = %+v, want %+v", got, want)
			}
			l.load(c)
			wantSameDeltas(t, s, c)
			flush(t, c)
			wantSame(t, "after a checkpoint", sec, prim)
		}
		for v, captured := range []bool{false, true} {
			prim.write(0, 0, randomPage(r)...)
			prim.write(0, PageSize+5, byte(v)+1)
			prim.write(1, 100, 1, 2)
			if captured {
				step(captured, Stats{Pages: 2, XBZRLEPages: 1, UnchangedPages: 1}) // page 0 overflows
			} else {
				step(captured, Stats{Pages: 3}) // none of them was sent since the first round
			}
			prim.write(0, 9, 1, 2, 3)
			prim.write(0, PageSize+5, byte(v)+1) // the same again
			prim.write(1, 0, make([]byte, PageSize)...)
			step(captured, Stats{Pages: 2, XBZRLEPages: 1, ZeroPages: 1, UnchangedPages: 1})
			prim.write(1, 100, 1, 2)
			step(captured, Stats{Pages: 1, XBZRLEPages: 1}) // from a page of zeros
		}
	})
}

// Zero pages are told from others by their first word, many at a time.
func TestPagesThatBeginWithZerosAreNotAllZero(t *testing.T) {
	g := newGuest(t, pages(t, "a", 70), pages(t, "b", 3))
	for bi := range g.blocks {
		for i := range len(g.blocks[bi].Host) / PageSize {
			switch i % 3 {
			case 1:
				g.write(bi, i*PageSize, 1)
			case 2:
				g.write(bi, i*PageSize+PageSize-1, 1)
			}
		}
	}
	s := NewSaver(g.blocks, g, SaverConfig{})
	for _, step := range []func(w *qemufile.Writer) error{
		func(w *qemufile.Writer) error { _, err := s.SaveIterate(w); return err },
		s.SaveComplete,
	} {
		if err := s.SaveSetup(qemufile.NewWriter(io.Discard)); err != nil {
			t.Fatal(err)
		}
		seen := 0
		in := body(t, func(w *qemufile.Writer) {
			if err := step(w); err != nil {
				t.Fatal(err)
			}
		})
		if err := new(Walker).Walk(reader(in), func(rec *Record) error {
			if rec.Page() {
				seen++
				want := KindPage
				if rec.Offset/PageSize%3 == 0 {
					want = KindZero
				}
				if rec.Kind != want {
					t.Errorf("page %#x of %s is a %v, want %v", rec.Offset, rec.Block, rec.Kind, want)
				}
			}
			return nil
		}); err != nil || seen != 73 {
			t.Errorf("%d pages, %v", seen, err)
		}
	}
}

func TestRateLimitShortensAStep(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 1000))
	for i := range 1000 {
		g.write(0, i*PageSize, 1)
	}
	s := NewSaver(g.blocks, g, SaverConfig{})
	w := qemufile.NewWriter(io.Discard)
	w.SetRateLimit(100 * PageSize / 0.1) // 100 pages in the Writer's window
	if err := s.SaveSetup(w); err != nil {
		t.Fatal(err)
	}
	if done, err := s.SaveIterate(w); done || err != nil {
		t.Fatalf("SaveIterate = %v, %v", done, err)
	}
	if n := s.Stats().Pages; n == 0 || n == 1000 {
		t.Errorf("%d pages of 1000 were sent where 100 are allowed", n)
	}
}

// failWriter fails after n bytes.
type failWriter struct{ n int }

func (f *failWriter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestFailedSendPutsThePagesBack(t *testing.T) {
	t.Parallel()
	n := 4000
	if testing.Short() {
		n = 1000
	}
	g := newGuest(t, pages(t, "ram", n))
	s := NewSaver(g.blocks, g, SaverConfig{})
	if err := s.SaveSetup(qemufile.NewWriter(io.Discard)); err != nil {
		t.Fatal(err)
	}
	for i := range n * 3 / 4 {
		g.write(0, i*PageSize, 1)
	}
	if !capture(t, s) {
		t.Fatal("did not fit")
	}
	err := s.SaveComplete(qemufile.NewWriter(&failWriter{n: 1 << 20}))
	var e *Error
	if !errors.Is(err, io.ErrClosedPipe) || !errors.As(err, &e) || e.Op != "save" {
		t.Fatalf("SaveComplete = %v", err)
	}
	if must, _ := s.Pending(false); must != uint64(n)*PageSize {
		t.Errorf("%d pages are dirty, want all %d", must/PageSize, n)
	}
	// A new session sends everything.
	l, sec := newLink(t), g.twin(t)
	c := newCache(t, sec, CacheConfig{})
	l.sync(s, c)
	wantSame(t, "after the second attempt", sec, g)
}

// TestConvergence drives the saver the way a migration does: until what is
// pending is small, looking at the log only when the estimate says so.
func TestConvergence(t *testing.T) {
	t.Parallel()
	eachCache(t, func(t *testing.T, k kind) {
		r := rand.New(rand.NewPCG(1, 3))
		prim := newGuest(t, pages(t, "ram", 1000))
		for i := range 1000 {
			prim.write(0, i*PageSize, byte(i))
		}
		sec := prim.twin(t)
		s := NewSaver(prim.blocks, prim, SaverConfig{IterateBytes: 64 * PageSize})
		c, l := k.cache(t, sec, CacheConfig{}), newLink(t)
		l.setup(s)
		const threshold = 20 * PageSize
		exact, steps := 0, 0
		for {
			if must, _ := s.Pending(false); must < threshold {
				exact++
				if must, _ = s.Pending(true); must < threshold {
					break
				}
			}
			l.iterate(s)
			prim.scribble(r, 10)
			if steps++; steps > 1000 {
				t.Fatal("does not converge")
			}
		}
		if steps < 1000/64 {
			t.Errorf("%d calls sent 1000 pages: more than asked for at a time", steps)
		}
		if exact > steps/2 {
			t.Errorf("the log was read %d times in %d steps", exact, steps)
		}
		want := prim.snapshot()
		l.complete(s)
		l.load(c)
		flush(t, c)
		wantMemory(t, "after the migration", sec, want)
	})
}

func TestContinueOutlivesSectionsAndCheckpoints(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 4))
	s := NewSaver(g.blocks, g, SaverConfig{})
	body(t, func(w *qemufile.Writer) {
		if err := s.SaveSetup(w); err != nil {
			t.Fatal(err)
		}
		if _, err := s.SaveIterate(w); err != nil {
			t.Fatal(err)
		}
		if err := s.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
	})
	g.write(0, 0, 5)
	capture(t, s)
	got := body(t, func(w *qemufile.Writer) {
		if err := s.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
	})
	if !bytes.HasPrefix(got, unhex(t, "0000000000000028 05")) {
		t.Errorf("the checkpoint's first page is % x, want CONTINUE and no name", got[:16])
	}
}

func TestDirtyLogIsSwitchedOnAndOff(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 1))
	s := NewSaver(g.blocks, g, SaverConfig{})
	if err := s.SaveSetup(qemufile.NewWriter(io.Discard)); err != nil || !g.on {
		t.Fatalf("%v, log on: %v", err, g.on)
	}
	s.SaveCleanup()
	if g.on {
		t.Error("the log is on after SaveCleanup")
	}
}

func TestDirtyLogErrorsAreReturnedAndLoseNothing(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 4))
	s := NewSaver(g.blocks, g, SaverConfig{})
	w := qemufile.NewWriter(io.Discard)
	if err := s.SaveSetup(w); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	g.fail = boom
	var e *Error
	if _, err := s.Capture(); !errors.Is(err, boom) || !errors.As(err, &e) || e.Block != "ram" {
		t.Errorf("Capture = %v", err)
	}
	if must, _ := s.Pending(false); must != 4*PageSize {
		t.Errorf("%d bytes pending", must)
	}
	s.Pending(true)
	if _, err := s.SaveIterate(w); !errors.Is(err, boom) {
		t.Errorf("SaveIterate after a failed Pending = %v", err)
	}
	if err := s.SaveComplete(w); !errors.Is(err, boom) {
		t.Errorf("SaveComplete = %v", err)
	}
	g.fail = nil
	if err := s.SaveSetup(w); err != nil {
		t.Errorf("a new session: %v", err)
	}
}

// What SaveComplete sends straight from the guest's memory, without a capture or beside
// one, is dirty again when it could not be sent.
func TestFailedSendFromTheGuestPutsThePagesBack(t *testing.T) {
	for name, c := range map[string]struct {
		cfg     SaverConfig
		capture bool
	}{
		"without a capture":           {SaverConfig{}, false},
		"without, and of differences": {SaverConfig{XBZRLE: 1 << 20}, false},
		"beside a capture":            {SaverConfig{MaxCapture: chunkSize}, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, pages(t, "ram", 1000))
			s := NewSaver(g.blocks, g, c.cfg)
			w := qemufile.NewWriter(io.Discard)
			if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w)); err != nil {
				t.Fatal(err)
			}
			for i := range 600 {
				g.write(0, i*PageSize, 1)
			}
			if c.capture && capture(t, s) {
				t.Fatal("it fitted")
			}
			if err := s.SaveComplete(qemufile.NewWriter(&failWriter{n: 300 << 10})); !errors.Is(err, io.ErrClosedPipe) {
				t.Fatalf("SaveComplete = %v", err)
			}
			if must, _ := s.Pending(false); must != 600*PageSize {
				t.Errorf("%d pages are dirty, want 600", must/PageSize)
			}
			g.write(0, 600*PageSize, 1)
			if must, _ := s.Pending(true); must != 601*PageSize {
				t.Errorf("%d pages are dirty with one more, want 601", must/PageSize)
			}
		})
	}
}
