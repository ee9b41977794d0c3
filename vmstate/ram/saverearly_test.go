package ram

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// sendEarly sends pages between two checkpoints, as a primary does, and returns the number of
// pieces.
func sendEarly(t *testing.T, l *link, s *Saver, most int) (pieces int) {
	t.Helper()
	for s.Pending(true); s.BeginEarly(most) > 0; pieces++ {
		if l.iterate(s); pieces > 10000 {
			t.Fatal("sending early does not end")
		}
	}
	return pieces
}

func TestHotPagesAreFoundBeforeTheCheckpoint(t *testing.T) {
	t.Parallel()
	eachAhead(t, func(t *testing.T, cfg SaverConfig, rest func(*link, *Saver)) {
		const hot, cold, rounds = 160, 640, 8
		checkpoints := 6
		if testing.Short() {
			checkpoints = 3
		}
		prim := newGuest(t, pages(t, "ram", 900), pages(t, "vga", 20))
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, cfg), newCache(t, sec, CacheConfig{}), newLink(t)
		r := rand.New(rand.NewPCG(1, 1))
		l.sync(s, c)
		write := func(from, n int) {
			for i := from; i < from+n; i++ {
				prim.write(0, i*PageSize+r.IntN(4000), byte(r.Uint32()), byte(i))
			}
		}
		for n := range checkpoints {
			for round := range rounds {
				write(0, hot)
				write(hot+round*cold/rounds, cold/rounds)
				sendEarly(t, l, s, 64<<10)
			}
			write(0, hot)
			rest(l, s)
			want := prim.snapshot()
			pages, again := s.Ahead()
			tried := uint64(hot / hotFor)
			if n == 0 {
				tried = hot
			}
			// Each of them once, though the log was read eight times.
			if pages != cold+tried || again != tried {
				t.Errorf("checkpoint %d: %d pages went early and %d again, want %d and %d", n, pages, again, cold+tried, tried)
			}
			if most := uint64(hot + tried + cold); s.Stats().Pages > most {
				t.Errorf("checkpoint %d: %d pages were sent, at most %d are due", n, s.Stats().Pages, most)
			}
			l.load(c)
			flush(t, c)
			wantMemory(t, fmt.Sprintf("checkpoint %d", n), sec, want)
		}
	})
}

func TestAPieceIsAsSmallAsItWasAskedFor(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 300))
	sec := prim.twin(t)
	s, c, l := NewSaver(prim.blocks, prim, SaverConfig{}), newCache(t, sec, CacheConfig{}), newLink(t)
	l.sync(s, c)
	for i := range 256 {
		prim.write(0, i*PageSize, 1, byte(i))
	}
	if n := sendEarly(t, l, s, 16*PageSize); n != 16 {
		t.Errorf("256 pages went in %d pieces of 16", n)
	}
	if left := s.BeginEarly(16 * PageSize); left != 0 {
		t.Errorf("%d bytes are left", left)
	}
	for i := range 256 {
		prim.write(0, i*PageSize, 2, byte(i))
	}
	s.NewSession()
	s.Pending(true)
	s.BeginAhead() // as large as ever
	if !l.iterate(s) {
		t.Error("a piece that was not asked to be small is small")
	}
}

// Whatever comes early, the guest is, until Flush, as the last checkpoint and its own writes
// have made it; and where the session ends first the next one begins with all that was dropped.
func TestWhatComesEarlyCountsWithItsCheckpointOnly(t *testing.T) {
	t.Parallel()
	eachCache(t, func(t *testing.T, k kind) {
		for name, cfg := range kindsOfSaver() {
			if cfg.XBZRLE > 0 && k.cfg.StagedOnly {
				continue // TakesEarly says so
			}
			t.Run(name, func(t *testing.T) {
				seeds := uint64(12)
				if testing.Short() {
					seeds = 2
				}
				for seed := range seeds {
					x := newResumer(t, k, seed, cfg)
					if !x.load(x.begin(false), 1<<30) {
						t.Fatal("cut")
					}
					x.commit()
					x.s.Confirm()
					for range 12 {
						came := true
						for range x.r.IntN(4) {
							x.p.scribble(x.r, x.r.IntN(9))
							x.sec.scribble(x.r, x.r.IntN(9))
							before := x.sec.snapshot()
							pieces := x.early()
							arrives := length(pieces)
							if came && arrives > 0 && x.r.IntN(5) == 0 {
								arrives = x.r.IntN(arrives)
							}
							came = came && x.load(pieces, arrives)
							wantMemory(t, "the guest, as pages come early", x.sec, before)
						}
						if came && x.r.IntN(3) > 0 {
							x.p.scribble(x.r, x.r.IntN(5))
							x.tells()
							if !x.load(x.stream(false), 1<<30) {
								t.Fatal("cut")
							}
							x.commit()
							x.s.Confirm()
							continue
						}
						before := x.sec.snapshot()
						x.cut()
						wantMemory(t, "the guest, when what came early is dropped", x.sec, before)
						x.p.scribble(x.r, x.r.IntN(5))
						if !x.load(x.begin(true), 1<<30) {
							t.Fatal("cut")
						}
						x.commit()
						x.s.Confirm()
					}
				}
			})
		}
	})
}

// early returns the pieces that a primary sends at one time between two checkpoints.
func (x *resumer) early() (pieces [][]byte) {
	x.t.Helper()
	for x.s.Pending(true); x.s.BeginEarly(3*PageSize) > 0 && len(pieces) < 1000; {
		pieces = append(pieces, body(x.t, func(w *qemufile.Writer) {
			if _, err := x.s.SaveIterate(w); err != nil {
				x.t.Fatal(err)
			}
		}))
		x.p.scribble(x.r, x.r.IntN(2))
	}
	return pieces
}

// The two guests write the same pages. If the secondary asked again for those that have come
// early, they would have come for nothing.
func TestAPageThatHasComeEarlyIsNotAskedForAgain(t *testing.T) {
	prim, sec, s, c, l := stagedPair(t, 100, SaverConfig{}, CacheConfig{})
	for i := range 80 {
		prim.write(0, i*PageSize, 1, 2, byte(i))
		sec.write(0, i*PageSize, 3, 4, byte(i))
	}
	sendEarly(t, l, s, 64<<10)
	l.load(c)
	sec.write(0, 90*PageSize, 5)
	before := s.Stats().Pages
	checkpoint(t, prim, sec, s, c, l)
	if n := s.Stats().Pages - before; n != 1 {
		t.Errorf("%d pages went with the checkpoint, of which the secondary lacked 1", n)
	}
}

func TestADifferenceIsNotTakenEarlyWithoutACopy(t *testing.T) {
	_, sec, _, c, _ := stagedPair(t, 8, SaverConfig{}, CacheConfig{})
	before := sec.snapshot()
	reads := sec.reads
	delta := unhex(t, "0000000000003040 03 72616d 01 0004 0502aabb"+eosHex)
	var e *Error
	if err := loadBytes(c, delta); !errors.Is(err, ErrNotResent) || !errors.As(err, &e) || e.Block != "ram" || e.Offset != 3*PageSize {
		t.Errorf("LoadState = %v", err)
	}
	if sec.reads != reads {
		t.Error("the log was read while the guest ran: what it wrote later is not in it")
	}
	wantMemory(t, "the guest", sec, before)
}

func TestACacheSaysHowMuchItTakesEarly(t *testing.T) {
	const most = 64 * PageSize
	for name, test := range map[string]struct {
		cfg         CacheConfig
		whole, with uint64
	}{
		"a copy":                    {CacheConfig{}, math.MaxUint64, math.MaxUint64},
		"what is staged":            {CacheConfig{StagedOnly: true}, math.MaxUint64, 0},
		"what is staged, with room": {CacheConfig{StagedOnly: true, MaxStaged: most}, most / 2, 0},
	} {
		g := newGuest(t, pages(t, "ram", 8))
		c := kind{cfg: test.cfg}.cache(t, g, test.cfg)
		if got := c.TakesEarly(false); got != test.whole {
			t.Errorf("%s: %d bytes of pages", name, got)
		}
		if got := c.TakesEarly(true); got != test.with {
			t.Errorf("%s: %d bytes with differences", name, got)
		}
	}
}

// Of a guest that writes more than there is room for, as much comes early as TakesEarly says,
// and the checkpoint finds room for as much again.
func TestThereIsRoomForACheckpointAfterWhatCameEarly(t *testing.T) {
	const room = 128
	prim, sec, s, c, l := stagedPair(t, 512, SaverConfig{}, CacheConfig{MaxStaged: room * PageSize})
	takes := c.TakesEarly(s.Differences()) / PageSize
	for n := range 6 {
		at := n % 2 * 200 // the pages of the last checkpoint have memory until others need it
		for i := range room {
			prim.write(0, (at+i)*PageSize, 7, byte(n), byte(i))
		}
		s.Pending(true)
		for pages := uint64(0); pages+4 <= takes; pages, _ = s.Ahead() {
			s.BeginEarly(4 * PageSize)
			l.iterate(s)
			l.load(c)
		}
		checkpoint(t, prim, sec, s, c, l)
		if err := c.Settle(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSendingEarlyAllocatesNothing(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 200))
	s := NewSaver(prim.blocks, prim, SaverConfig{Resumable: true})
	w := qemufile.NewWriter(io.Discard)
	if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w)); err != nil {
		t.Fatal(err)
	}
	data := slices.Repeat([]byte{1}, PageSize)
	if n := testing.AllocsPerRun(100, func() {
		for i := range 100 {
			prim.write(0, i*PageSize, data...)
		}
		s.Pending(true)
		for s.BeginEarly(16*PageSize) > 0 {
			if _, err := s.SaveIterate(w); err != nil {
				t.Fatal(err)
			}
		}
		if pages, again := s.Ahead(); pages != 100 || again != 0 {
			t.Fatalf("%d pages went early, %d again", pages, again)
		}
		if err := s.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
