package ram

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// A resumer is a saver and a cache that lose each other again and again.
type resumer struct {
	t      *testing.T
	k      kind
	r      *rand.Rand
	p, sec *guest
	s      *Saver
	c      *Cache
	more   bool // pages are captured, or sent while the guest runs, as chance has it

	held [][]byte // what the secondary's guest was made last
}

func newResumer(t *testing.T, k kind, seed uint64, cfg SaverConfig) *resumer {
	x := &resumer{t: t, k: k, r: rand.New(rand.NewPCG(seed, 7)), p: newGuest(t, pages(t, "ram", 70), pages(t, "vga", 3)), more: true}
	x.sec = x.p.twin(t)
	slices.Reverse(x.sec.blocks)
	cfg.Resumable = true
	x.s = NewSaver(x.p.blocks, x.p, cfg)
	x.c = k.cache(t, x.sec, CacheConfig{Resumable: true})
	x.p.scribble(x.r, 40)
	return x
}

// stream makes a checkpoint of the primary, and returns what leaves of it, section by section.
func (x *resumer) stream(setup bool) [][]byte {
	x.t.Helper()
	var sections [][]byte
	section := func(f func(w *qemufile.Writer) error) {
		sections = append(sections, body(x.t, func(w *qemufile.Writer) {
			if err := f(w); err != nil {
				x.t.Fatal(err)
			}
		}))
	}
	if setup {
		section(x.s.SaveSetup)
	}
	for n := x.r.IntN(3); x.more && n > 0; n-- {
		section(func(w *qemufile.Writer) error { _, err := x.s.SaveIterate(w); return err })
		x.p.scribble(x.r, 2)
		if x.r.IntN(2) == 0 {
			x.s.Pending(true)
		}
	}
	if x.more && !setup && x.r.IntN(2) == 0 {
		capture(x.t, x.s)
	}
	x.held = x.p.snapshot()
	slices.Reverse(x.held)
	section(x.s.SaveComplete)
	return sections
}

// load gives the cache as much of a stream as arrives, and reports whether that is all.
func (x *resumer) load(sections [][]byte, arrives int) bool {
	x.t.Helper()
	for _, p := range sections {
		n := min(arrives, len(p))
		err := loadBytes(x.c, p[:n])
		if (err == nil) != (n == len(p)) {
			x.t.Fatalf("%d bytes of %d: %v", n, len(p), err)
		}
		if arrives -= n; err != nil {
			return false
		}
	}
	return true
}

func length(sections [][]byte) (n int) {
	for _, p := range sections {
		n += len(p)
	}
	return n
}

// tells has the primary told which pages the secondary's guest wrote, if the cache keeps no copy.
func (x *resumer) tells() { tell(x.t, x.c, x.s) }

// begin returns the first stream of a session that both agree to resume, or not.
func (x *resumer) begin(resume bool) [][]byte {
	x.t.Helper()
	if resume {
		if !x.s.Resume() || !x.c.Resume() {
			x.t.Fatal("nothing to go on from")
		}
		x.tells()
	}
	x.c.NewSession()
	x.c.Resent()
	return x.stream(true)
}

// commit puts what has come into the memory of the guest.
func (x *resumer) commit() {
	x.t.Helper()
	if err := x.c.CheckStaged(); err != nil {
		x.t.Fatal(err)
	}
	flush(x.t, x.c)
	wantMemory(x.t, "committed", x.sec, x.held)
}

// cut ends the session on both sides, as after a lost connection.
func (x *resumer) cut() { x.c.Discard(); x.s.SaveCleanup() }

func kindsOfSaver() map[string]SaverConfig {
	return map[string]SaverConfig{"plain": {}, "differences": {XBZRLE: 40 * PageSize}, "little room": {MaxCapture: 8 * PageSize}}
}

// A link that is lost at any byte of a checkpoint, when all of it has come, when it is
// committed, or when the primary has heard so, costs nothing of the guest; and what the
// next session sends is what was written since.
func TestASessionGoesOnFromWhatTheSecondaryHolds(t *testing.T) {
	t.Parallel()
	eachCache(t, func(t *testing.T, k kind) {
		for name, cfg := range kindsOfSaver() {
			t.Run(name, func(t *testing.T) {
				seeds := uint64(10)
				if testing.Short() {
					seeds = 1
				}
				for seed := range seeds {
					x := newResumer(t, k, seed, cfg)
					if !x.load(x.begin(false), 1<<30) {
						t.Fatal("cut")
					}
					x.commit()
					x.s.Confirm()
					for range 12 {
						resumes := x.r.IntN(3) == 0
						if resumes {
							x.cut()
						}
						x.p.scribble(x.r, x.r.IntN(9))
						x.sec.scribble(x.r, x.r.IntN(9))
						var sections [][]byte
						if resumes {
							sections = x.begin(true)
						} else {
							x.tells()
							sections = x.stream(false)
						}
						total := length(sections)
						arrives := total
						switch x.r.IntN(4) {
						case 0:
							arrives = x.r.IntN(total)
						case 1: // in the middle of what is said of the pages
							arrives = x.r.IntN(min(total, 200))
						}
						came := x.load(sections, arrives)
						if came && x.r.IntN(3) > 0 {
							x.commit()
							if x.r.IntN(2) == 0 {
								x.s.Confirm()
								continue
							}
						}
						// What the secondary has committed and the primary does not know is
						// no harm. Now and then it runs on a little before it notices.
						x.sec.scribble(x.r, x.r.IntN(3))
						x.cut()
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

// What is sent after a cut is what was written, or was under way, since the checkpoint
// that is held, and what the secondary's guest wrote where no copy is kept.
func TestAResumedSessionSendsWhatIsLacking(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		x := newResumer(t, k, 1, SaverConfig{})
		x.more = false
		x.load(x.begin(false), 1<<30)
		x.commit()
		x.s.Confirm()
		x.p.write(0, 3*PageSize, 1, 2, 3) // is sent, and does not come
		x.tells()
		x.load(x.stream(false), 20)
		x.cut()
		x.p.write(0, 9*PageSize, 4, 5, 6)
		x.sec.write(1, 12*PageSize, 7)
		want := 2
		if k.cfg.StagedOnly {
			want++
		}
		x.load(x.begin(true), 1<<30)
		if got := x.s.Stats().Pages; got != uint64(want) {
			t.Errorf("%d pages were sent, not %d", got, want)
		}
		x.commit()
	})
}

// What several workers have captured was under way as well.
func TestWhatWorkersHaveCapturedIsSentAgain(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		p := newGuest(t, pages(t, "ram", 800))
		sec := p.twin(t)
		s := NewSaver(p.blocks, p, SaverConfig{Resumable: true, CaptureWorkers: 2})
		c := k.cache(t, sec, CacheConfig{Resumable: true})
		l := newLink(t)
		l.sync(s, c)
		s.Confirm()
		for i := range 700 {
			p.write(0, i*PageSize, byte(i), 1)
		}
		capture(t, s)
		l = newLink(t)
		l.complete(s) // and nothing of it arrives
		c.Discard()
		s.SaveCleanup()
		if !s.Resume() || !c.Resume() {
			t.Fatal("nothing to go on from")
		}
		tell(t, c, s)
		c.NewSession()
		newLink(t).sync(s, c)
		wantSame(t, "resumed", sec, p)
	})
}

// A primary that sends less than a page that the secondary's guest wrote is found out
// before anything is committed.
func TestAResumedSessionThatLacksAPageIsFoundOut(t *testing.T) {
	for _, k := range []kind{{"staged only", CacheConfig{StagedOnly: true}}} {
		x := newResumer(t, k, 1, SaverConfig{})
		x.load(x.begin(false), 1<<30)
		x.commit()
		x.s.Confirm()
		x.cut()
		x.sec.write(1, 12*PageSize, 7)
		x.s.Resume()
		x.c.Resume()
		x.c.NewSession()
		x.c.Resent()
		x.load(x.stream(true), 1<<30)
		if err := x.c.CheckStaged(); !errors.Is(err, ErrNotResent) {
			t.Error(err)
		}
	}
}

// Where one of the two does not know what it has, there is nothing to resume.
func TestThereIsNothingToResume(t *testing.T) {
	fail := errors.New("no log")
	for name, f := range map[string]func(x *resumer) (saver, cache bool){
		"before the first checkpoint": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 100)
			x.cut()
			return false, false
		},
		"when the primary has heard of none": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 1<<30)
			x.commit()
			x.cut()
			return false, true
		},
		"when the primary's log has failed": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 1<<30)
			x.commit()
			x.s.Confirm()
			x.p.fail = fail
			x.s.Pending(true)
			x.cut()
			x.p.fail = nil
			return false, true
		},
		"when the secondary's log has failed": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 1<<30)
			x.commit()
			x.s.Confirm()
			x.tells()
			x.load(x.stream(false), 1<<30)
			x.sec.fail = fail
			if err := x.c.Flush(); !errors.Is(err, fail) {
				x.t.Error(err)
			}
			x.cut()
			return true, false
		},
		"when a session that sends all has begun": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 1<<30)
			x.commit()
			x.s.Confirm()
			x.cut()
			x.load(x.begin(false), 100)
			x.cut()
			return false, false
		},
		"when it is forgotten": func(x *resumer) (bool, bool) {
			x.load(x.begin(false), 1<<30)
			x.commit()
			x.s.Confirm()
			x.cut()
			if !x.p.on || !x.sec.on {
				x.t.Error("a dirty log is off")
			}
			x.s.Forget()
			if err := x.c.Close(); err != nil {
				x.t.Error(err)
			}
			if x.p.on || x.sec.on {
				x.t.Error("a dirty log is on")
			}
			return false, false
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachCache(t, func(t *testing.T, k kind) {
				x := newResumer(t, k, 1, SaverConfig{})
				saver, cache := f(x)
				if got := x.s.Resumable(); got != saver || x.s.Resume() != saver {
					t.Errorf("the saver: %v", got)
				}
				if got := x.c.Resumable(); got != cache || x.c.Resume() != cache {
					t.Errorf("the cache: %v", got)
				}
			})
		})
	}
}

// Neither keeps anything unless it is asked to.
func TestNothingIsKeptUnasked(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		p := newGuest(t, pages(t, "ram", 4))
		sec := p.twin(t)
		s, c := NewSaver(p.blocks, p, SaverConfig{}), k.cache(t, sec, CacheConfig{})
		newLink(t).sync(s, c)
		s.Confirm()
		c.Discard()
		s.SaveCleanup()
		if s.Resumable() || c.Resumable() || p.on || sec.on {
			t.Error("something is kept")
		}
	})
}

// A checkpoint of a saver that may resume allocates no more than one that may not.
func TestResumableCheckpointsAllocateNothing(t *testing.T) {
	p := newGuest(t, pages(t, "ram", 600))
	s := NewSaver(p.blocks, p, SaverConfig{Resumable: true})
	w := qemufile.NewWriter(io.Discard)
	if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w)); err != nil {
		t.Fatal(err)
	}
	s.Confirm()
	var err error
	if n := testing.AllocsPerRun(100, func() {
		p.write(0, 7*PageSize, 1)
		if _, e := s.Capture(); e != nil {
			err = e
		}
		if e := s.SaveComplete(w); e != nil {
			err = e
		}
		if e := w.Flush(); e != nil {
			err = e
		}
		s.Confirm()
	}); n != 0 || err != nil {
		t.Errorf("%v allocations, %v", n, err)
	}
}

// Before a session begins the saver says what it would send, and without anything to resume
// from that is all.
func TestASaverSaysHowMuchAResumedSessionSends(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 70), pages(t, "vga", 3))
	s := NewSaver(g.blocks, g, SaverConfig{Resumable: true})
	w := qemufile.NewWriter(io.Discard)
	lacks := func(why string, want uint64) {
		t.Helper()
		if got := s.Lacking(); got != want*PageSize {
			t.Errorf("%s: %d pages, want %d", why, got/PageSize, want)
		}
	}
	lacks("before the first session", 73)
	if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w)); err != nil {
		t.Fatal(err)
	}
	s.Confirm()
	g.write(0, 5*PageSize, 1)
	g.write(1, 2*PageSize, 1)
	if err := s.SaveComplete(w); err != nil {
		t.Fatal(err)
	}
	s.SaveCleanup()
	g.write(0, 5*PageSize, 1)
	g.write(0, 69*PageSize, 1)
	for range 2 {
		lacks("sent or written", 3)
	}
	if !s.Resume() {
		t.Fatal("nothing to resume")
	}
	if err := errors.Join(s.SaveSetup(w), s.SaveComplete(w)); err != nil {
		t.Fatal(err)
	}
	if s.Pages() != 3 {
		t.Errorf("%d pages were sent", s.Pages())
	}
	s.Confirm()
	s.SaveCleanup()
	g.fail = io.ErrNoProgress
	lacks("the log has failed", 73)
	if g.fail = nil; s.Resumable() || s.Resume() {
		t.Error("it can be resumed")
	}
}

// A block list that was not committed does not change the length of a block for the next session.
func TestALengthThatWasNotCommittedIsForgotten(t *testing.T) {
	b := Block{Name: "ram", Host: newMemory(t, 4*PageSize), Used: 2 * PageSize, Resizable: true}
	c := newCache(t, newGuest(t, b), CacheConfig{Resumable: true})
	list := func(used uint64, at int) []byte {
		return body(t, func(w *qemufile.Writer) {
			putBlockList(w, []BlockInfo{{Name: "ram", Length: used * PageSize}}, used*PageSize, Format{})
			rec := Record{Kind: KindPage, Block: "ram", Offset: uint64(at) * PageSize, Data: page(1)}
			rec.Put(w, Format{})
			w.PutBE64(flagEOS)
		})
	}
	if err := loadBytes(c, list(2, 1)); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
	if err := loadBytes(c, list(4, 3)); err != nil {
		t.Fatal(err)
	}
	c.Discard()
	if !c.Resume() {
		t.Fatal("there is nothing to go on from")
	}
	c.NewSession()
	err := loadBytes(c, body(t, func(w *qemufile.Writer) {
		rec := Record{Kind: KindPage, Block: "ram", Offset: 3 * PageSize, Data: page(2)}
		rec.Put(w, Format{})
		w.PutBE64(flagEOS)
	}))
	if !errors.Is(err, ErrOffset) {
		t.Errorf("a page beyond what was committed: %v", err)
	}
}
