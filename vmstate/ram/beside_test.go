package ram

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// sides carries pages beside a link, to a cache, as two connections would: those of
// a section come from two goroutines while its stream is read.
type sides struct {
	t     testing.TB
	c     *Cache
	fill  []besidePage   // of the section that is sent
	sent  [][]besidePage // of sections, ready to be received
	group sync.WaitGroup
	open  bool
	total int
	errs  [2]error
}

type besidePage struct {
	block string
	off   uint64
	data  []byte
}

func (s *sides) SendPage(block string, off uint64, page []byte) error {
	s.fill = append(s.fill, besidePage{block, off, page})
	s.total++
	return nil
}

func (s *sides) Sync() error {
	if s.open {
		s.group.Wait()
		s.open = false
		return errors.Join(s.errs[:]...)
	}
	for i, p := range s.fill { // the last moment at which they may be read
		s.fill[i].data = append([]byte(nil), p.data...)
	}
	s.sent = append(s.sent, s.fill)
	s.fill = nil
	return nil
}

func (s *sides) Begin() error {
	if len(s.sent) == 0 {
		s.t.Error("a section has begun that was not sent")
		return errEmpty
	}
	list := s.sent[0]
	s.sent, s.open = s.sent[1:], true
	for n := range s.errs {
		s.errs[n] = nil
		s.group.Go(func() {
			for i := n; i < len(list); i += len(s.errs) {
				if err := s.c.StagePage(list[i].block, list[i].off, list[i].data); err != nil && s.errs[n] == nil {
					s.errs[n] = err
				}
			}
		})
	}
	return nil
}

// beside has a saver and a cache that are in step go on with pages beside the stream.
func beside(t testing.TB, s *Saver, c *Cache) *sides {
	x := &sides{t: t, c: c}
	s.SendPagesTo(x)
	c.TakePagesFrom(x)
	return x
}

// TestPagesBesideTheStreamMakeTheSameGuest has checkpoints of all forms: captured, by
// one or several workers, in part, or not; with memory sent ahead; with differences.
func TestPagesBesideTheStreamMakeTheSameGuest(t *testing.T) {
	t.Parallel()
	eachCache(t, func(t *testing.T, k kind) {
		for _, x := range []struct {
			name string
			cfg  SaverConfig
		}{
			{"plain", SaverConfig{CaptureWorkers: 1}},
			{"by workers", SaverConfig{CaptureWorkers: 2}},
			{"that do not fit", SaverConfig{MaxCapture: 20 * PageSize}},
			{"small pieces", SaverConfig{IterateBytes: 3 * PageSize}},
			{"differences", SaverConfig{XBZRLE: 64 * PageSize}},
			{"resumable", SaverConfig{Resumable: true}},
		} {
			t.Run(x.name, func(t *testing.T) {
				if testing.Short() && x.cfg.CaptureWorkers != 2 && x.cfg.XBZRLE == 0 {
					t.Skip("short: only by workers, and differences")
				}
				r := rand.New(rand.NewPCG(5, 9))
				prim := newGuest(t, pages(t, "ram", 700), pages(t, "vga", 30), pages(t, "rom", 3))
				sec := prim.twin(t)
				prim.scribble(r, 100)
				s, c := NewSaver(prim.blocks, prim, x.cfg), k.cache(t, sec, CacheConfig{})
				l := newLink(t)
				l.sync(s, c)
				x := beside(t, s, c)
				rounds := 12
				if testing.Short() {
					rounds = 6
				}
				for n := range rounds {
					prim.scribble(r, 150)
					sec.scribble(r, 40)
					tell(t, c, s)
					if n%3 == 1 {
						s.Pending(true)
						s.BeginAhead()
						for !l.iterate(s) {
						}
						prim.scribble(r, 20)
					}
					captured := n%4 != 3
					if captured {
						whole := capture(t, s)
						if n%5 == 4 { // the session has another idea
							capture(t, s)
						}
						want := prim.snapshot()
						if whole {
							prim.scribble(r, 10)
						}
						l.complete(s)
						l.load(c)
						flush(t, c)
						wantMemory(t, fmt.Sprintf("checkpoint %d", n), sec, want)
						continue
					}
					l.complete(s)
					l.load(c)
					flush(t, c)
					wantSame(t, fmt.Sprintf("checkpoint %d", n), sec, prim)
				}
				if x.total == 0 {
					t.Error("no page went beside the stream")
				}
			})
		}
	})
}

// What is sent as zeros or as a difference stays in the stream, and no page with
// contents does.
func TestOnlyWholePagesLeaveTheStream(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 10))
	sec := prim.twin(t)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 10 {
		prim.write(0, i*PageSize, randomPage(r)...)
	}
	s, c := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 64 * PageSize}), newCache(t, sec, CacheConfig{})
	l := newLink(t)
	l.sync(s, c)
	x := beside(t, s, c)
	// The cache of what was sent knows nothing yet.
	for i := range 10 {
		prim.write(0, i*PageSize, 1, 2, 3)
	}
	capture(t, s)
	l.complete(s)
	l.load(c)
	flush(t, c)
	if st := s.Stats(); x.total != 10 || st.Pages != 10 || st.Bytes < 10*PageSize {
		t.Errorf("%d pages left the stream: %+v", x.total, st)
	}
	prim.write(0, 0, make([]byte, PageSize)...)
	prim.write(0, PageSize, 4)
	prim.write(0, 2*PageSize, randomPage(r)...)
	capture(t, s)
	x.total = 0
	l.complete(s)
	l.load(c)
	flush(t, c)
	if st := s.Stats(); x.total != 1 || st.ZeroPages != 1 || st.XBZRLEPages != 1 || st.Pages != 3 {
		t.Errorf("%d pages left the stream: %+v", x.total, st)
	}
	wantSame(t, "after it", sec, prim)
}

// breaksAt breaks at its n-th call.
type breaksAt struct {
	sides
	n int
}

var errBeside = errors.New("broken beside the stream")

func (f *breaksAt) fails() bool { f.n--; return f.n < 0 }

func (f *breaksAt) SendPage(block string, off uint64, page []byte) error {
	if f.fails() {
		return errBeside
	}
	return f.sides.SendPage(block, off, page)
}

func (f *breaksAt) Sync() error {
	if f.fails() {
		return errBeside
	}
	return f.sides.Sync()
}

// A saver whose pages do not leave says so, and sends them with the next checkpoint.
func TestPagesThatDidNotLeaveAreSentAgain(t *testing.T) {
	for n := range 6 {
		prim := newGuest(t, pages(t, "ram", 40))
		sec := prim.twin(t)
		s, c := NewSaver(prim.blocks, prim, SaverConfig{Resumable: true}), newCache(t, sec, CacheConfig{})
		l := newLink(t)
		l.sync(s, c)
		s.Confirm()
		x := &breaksAt{sides: sides{t: t, c: c}, n: n}
		s.SendPagesTo(x)
		for i := range 5 {
			prim.write(0, 7*i*PageSize, byte(i), 1)
		}
		capture(t, s)
		err := s.SaveComplete(l.w)
		if n == 5 && err == nil {
			t.Fatal("the section has ended all the same")
		}
		var e *Error
		if !errors.Is(err, errBeside) || !errors.As(err, &e) {
			t.Fatalf("after %d calls: %v", n, err)
		}
		s.SendPagesTo(nil)
		s.SaveCleanup()
		// The next session, with the one that holds the checkpoint before.
		if !s.Resume() {
			t.Fatal("it cannot be gone on from")
		}
		l = newLink(t)
		c.NewSession()
		l.sync(s, c)
		wantSame(t, fmt.Sprintf("after %d calls", n), sec, prim)
	}
}

// A receiver that fails fails the load, at its begin and at its end; and the blocks of
// a guest do not change while pages come.
func TestALoadFailsWithWhatComesBesideIt(t *testing.T) {
	g, c := kind{}.one(t, 4, CacheConfig{})
	flush(t, c)
	want := g.snapshot()
	for _, x := range []struct {
		name string
		rec  receiver
		body []byte
		want error
	}{
		{"at its begin", receiver{begin: errBeside}, body(t, func(w *qemufile.Writer) { w.PutBE64(flagEOS) }), errBeside},
		{"at its end", receiver{sync: errBeside}, body(t, func(w *qemufile.Writer) { w.PutBE64(flagEOS) }), errBeside},
		{"block list", receiver{}, body(t, func(w *qemufile.Writer) {
			putBlockList(w, []BlockInfo{{Name: "ram", Length: 4 * PageSize}}, 4*PageSize, Format{})
		}), ErrBlockList},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.NewSession()
			c.TakePagesFrom(x.rec)
			err := loadBytes(c, x.body)
			var e *Error
			if !errors.Is(err, x.want) || !errors.As(err, &e) {
				t.Errorf("%v, want %v", err, x.want)
			}
			c.TakePagesFrom(nil)
			if err := c.Flush(); !errors.Is(err, ErrDiscarded) {
				t.Errorf("it was made the guest's: %v", err)
			}
			wantMemory(t, "after it", g, want)
		})
	}
}

type receiver struct{ begin, sync error }

func (r receiver) Begin() error { return r.begin }
func (r receiver) Sync() error  { return r.sync }
