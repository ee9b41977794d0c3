package ram

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/gocolo/lockstep/qemufile"
)

// idler is a guest that says how many CPUs it leaves idle.
type idler struct {
	*guest
	cpus int
}

func (i idler) IdleCPUs() int { return i.cpus }

// together returns two savers of one guest: one whose captures other goroutines help with, and
// one that captures alone.
func together(t testing.TB, g *guest, cfg SaverConfig) (one, many *Saver) {
	t.Helper()
	one = NewSaver(g.blocks, g, SaverConfig{MaxCapture: cfg.MaxCapture, XBZRLE: cfg.XBZRLE, CaptureWorkers: 1})
	many = NewSaver(g.blocks, idler{g, 3}, cfg)
	for _, s := range []*Saver{one, many} {
		w := qemufile.NewWriter(io.Discard)
		if err := s.SaveSetup(w); err != nil {
			t.Fatal(err)
		}
		if err := s.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
	}
	return one, many
}

// procs has as many threads run Go code as the test wants; on one CPU nobody helps.
func procs(t testing.TB) {
	if runtime.NumCPU() < 2 {
		t.Skip("there is one CPU")
	}
	old := runtime.GOMAXPROCS(4)
	t.Cleanup(func() { runtime.GOMAXPROCS(old) })
}

// complete returns what a saver sends of what it has captured.
func complete(t testing.TB, s *Saver) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := s.SaveComplete(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// By default the guest's idle CPUs help, as many as there are.
func TestTheCPUsThatTheGuestLeavesIdleHelp(t *testing.T) {
	procs(t)
	g := newGuest(t, pages(t, "ram", 10))
	for cpus, want := range map[int]int{0: 1, 1: 2, 64: min(4, runtime.NumCPU())} {
		if n := NewSaver(g.blocks, idler{g, cpus}, SaverConfig{}).workers(); n != want {
			t.Errorf("%d idle CPUs: %d workers, want %d", cpus, n, want)
		}
	}
	if n := NewSaver(g.blocks, g, SaverConfig{}).workers(); n != 1 {
		t.Errorf("a log that does not say: %d workers", n)
	}
	runtime.GOMAXPROCS(1) // procs undoes it
	if n := NewSaver(g.blocks, idler{g, 64}, SaverConfig{CaptureWorkers: 4}).workers(); n != 1 {
		t.Errorf("where one goroutine runs at a time: %d workers", n)
	}
}

// However many copy, the stream is the same, and so are the counts.
func TestACaptureByManyIsThatOfOne(t *testing.T) {
	procs(t)
	manyAsOne(t, SaverConfig{CaptureWorkers: 3})
}

// A page as a difference depends on those that were sent before, so that one goroutine takes them all.
func TestACaptureWithDifferencesIsMadeByOne(t *testing.T) {
	procs(t)
	manyAsOne(t, SaverConfig{CaptureWorkers: 3, XBZRLE: 1000 * PageSize})
}

// manyAsOne fails unless a saver with this configuration, and one that captures alone, send the same.
func manyAsOne(t *testing.T, cfg SaverConfig) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 5))
	g := newGuest(t, pages(t, "ram", 3000), pages(t, "a block with a long name", 500), pages(t, "vga", 64))
	one, many := together(t, g, cfg)
	for round, writes := range []int{0, 1, 50, 91, 400, 3000, 30, 5000} {
		g.scribble(r, writes)
		dirty := make(map[string]Bitmap)
		for name, d := range g.dirty {
			dirty[name] = append(Bitmap(nil), d...)
		}
		var sent [2][]byte
		var stats [2]Stats
		for i, s := range []*Saver{one, many} {
			for name, d := range dirty {
				copy(g.dirty[name], d)
			}
			if whole, err := s.Capture(); err != nil || !whole {
				t.Fatal(whole, err)
			}
			stats[i] = s.Stats()
			if helped, want := len(many.batches.parts) > 1, writes >= 400 && cfg.XBZRLE == 0; i == 1 && helped != want && (want || cfg.XBZRLE > 0) {
				t.Errorf("after %d writes others have helped: %v", writes, helped)
			}
			// The guest goes on.
			if round%2 == 1 {
				sent[i] = complete(t, s)
				continue
			}
			// A capture that is given up counts as never made, and the next has all of it.
			if whole, err := s.Capture(); err != nil || !whole {
				t.Fatal(whole, err)
			}
			sent[i] = complete(t, s)
		}
		if !bytes.Equal(sent[0], sent[1]) {
			t.Errorf("after %d writes: %d bytes by one, other %d by many", writes, len(sent[0]), len(sent[1]))
		}
		if stats[0] != stats[1] || one.Stats() != many.Stats() {
			t.Errorf("after %d writes: counts %+v by one, %+v by many", writes, one.Stats(), many.Stats())
		}
	}
}

// A capture that has no room for all of the dirty pages is made by one goroutine. The pages that
// do not fit are sent from the guest's memory later.
func TestACaptureThatHasNoRoomForManyIsMadeByOne(t *testing.T) {
	procs(t)
	g := newGuest(t, pages(t, "ram", 3000))
	_, many := together(t, g, SaverConfig{MaxCapture: 2 << 20})
	for i := range 3000 {
		g.write(0, i*PageSize, byte(i), 1)
	}
	whole, err := many.Capture()
	if err != nil || whole || len(many.batches.parts) > 0 {
		t.Errorf("whole %v, %d batches, %v", whole, len(many.batches.parts), err)
	}
}

func TestACaptureByManyAllocatesNothing(t *testing.T) {
	procs(t)
	g := newGuest(t, pages(t, "ram", 2000))
	_, many := together(t, g, SaverConfig{CaptureWorkers: 2})
	w := qemufile.NewWriter(io.Discard)
	if n := testing.AllocsPerRun(100, func() {
		for i := range 600 {
			g.write(0, i*3*PageSize, 1)
		}
		if whole, err := many.Capture(); err != nil || !whole {
			t.Fatal(whole, err)
		}
		if err := many.SaveComplete(w); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What a dirty page adds to the pause, beside its bound in the same run: one core that
// copies the same pages to one place, which no capture by one can beat. With two cores
// it is to be at most 0.6 of that, with one 1.05.
func BenchmarkCaptureTogether(b *testing.B) {
	for _, workers := range []int{1, 2} {
		for _, n := range []int{64, 256, 1000, 4000} {
			b.Run(fmt.Sprintf("workers=%d/pages=%d", workers, n), func(b *testing.B) {
				if workers > runtime.NumCPU() {
					b.Skip("there are fewer CPUs")
				}
				copied, growth, _ := captures(b, SaverConfig{CaptureWorkers: workers}, n)
				b.ReportMetric(growth/float64(n), "ns/page")
				b.ReportMetric(growth/copied, "x-of-one-core's-copy")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// Helpers that cost more than they help are left alone, but for a try now and then; they
// are back when they help again.
func TestHelpersAreHadAsLongAsTheyPay(t *testing.T) {
	var x trial
	run := func(alone, together time.Duration) (helped int) {
		for range 10 * trialEvery {
			h := x.together()
			cost := alone
			if h {
				cost = together
				helped++
			}
			x.saw(h, 100, 100*cost)
		}
		return helped
	}
	if n := run(400, 250); n < 9*trialEvery {
		t.Errorf("they pay, and helped %d of %d times", n, 10*trialEvery)
	}
	run(400, 900)
	if n := run(400, 900); n == 0 || n > trialEvery {
		t.Errorf("they cost, and helped %d of %d times", n, 10*trialEvery)
	}
	run(400, 250)
	if n := run(400, 250); n < 9*trialEvery {
		t.Errorf("they pay again, and helped %d of %d times", n, 10*trialEvery)
	}
}

// Whether helpers pay is found out for each size: few pages are copied before a helper is
// awake, and that says nothing of many.
func TestWhetherHelpersPayIsFoundOutForEachSize(t *testing.T) {
	var x trials
	helped := make(map[int]int)
	for range 10 * trialEvery {
		for _, pages := range []int{200, 4000} {
			h := x.of(pages).together()
			took := time.Duration(300 * pages)
			if h { // a helper comes after 80 µs
				took = max(took/2, 80*time.Microsecond) + 20*time.Microsecond
				helped[pages]++
			}
			x.of(pages).saw(h, pages, took)
		}
	}
	if few, many := helped[200], helped[4000]; few > trialEvery || many < 9*trialEvery {
		t.Errorf("of %d captures each, of 200 pages %d had help, of 4000 %d", 10*trialEvery, few, many)
	}
	x.of(0).together()
	x.of(math.MaxInt).together()
}

// A helper that wakes up when all is copied is turned away, and nobody has waited for it.
func TestAHelperThatComesTooLateIsTurnedAway(t *testing.T) {
	var h hands
	h.open()
	h.close()
	if h.enter() {
		t.Error("it was let in")
	}
	for range 100 {
		h.open()
		for range 2 {
			if !h.enter() {
				t.Fatal("closed")
			}
		}
		left := 0
		done := make(chan bool)
		go func() {
			left++
			h.leave()
			h.leave()
			close(done)
		}()
		if h.close(); left != 1 {
			t.Fatal("it was not waited for who copies")
		}
		<-done
	}
}

// Whoever takes a batch has it alone, from whichever end.
func TestEachBatchIsTakenOnce(t *testing.T) {
	var b batches
	for count := range 10 {
		b.left.Store(uint64(count) << 32)
		taken := make([]int, count)
		for i := 0; ; i++ {
			n, ok := b.take(i%3 == 0)
			if !ok {
				break
			}
			taken[n]++
		}
		for n, times := range taken {
			if times != 1 {
				t.Errorf("batch %d of %d was taken %d times", n, count, times)
			}
		}
	}
}

func TestSaveCompleteSendsWhatCaptureTook(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		prim := newGuest(t, pages(t, "ram", 40))
		sec := prim.twin(t)
		s, c, l := NewSaver(prim.blocks, prim, SaverConfig{}), k.cache(t, sec, CacheConfig{}), newLink(t)
		l.sync(s, c)
		prim.write(0, 3*PageSize, page(1)...)
		prim.write(0, 7*PageSize, page(2)...)
		prim.write(0, 8*PageSize, make([]byte, PageSize)...)
		want := prim.snapshot()
		if !capture(t, s) {
			t.Fatal("three pages did not fit the arena")
		}
		// The guest runs on before anything is sent.
		prim.write(0, 3*PageSize, page(9)...)
		prim.write(0, 8*PageSize, page(9)...)
		prim.write(0, 20*PageSize, page(9)...)
		l.complete(s)
		if got, want := s.Stats(), (Stats{Pages: 3, ZeroPages: 1, Bytes: 2*(8+PageSize) + 9 + 8}); got != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
		l.load(c)
		flush(t, c)
		wantMemory(t, "the captured state", sec, want)
		if must, _ := s.Pending(true); must != 3*PageSize {
			t.Errorf("%d bytes are pending, want those of the 3 pages written since", must)
		}
	})
}

func TestCaptureThatDoesNotFitIsCompletedFromTheGuest(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		prim := newGuest(t, pages(t, "ram", 100))
		sec := prim.twin(t)
		s := NewSaver(prim.blocks, prim, SaverConfig{MaxCapture: 16 * PageSize})
		c, l := k.cache(t, sec, CacheConfig{}), newLink(t)
		l.sync(s, c)
		for i := range 50 {
			prim.write(0, i*2*PageSize, page(byte(i+1))...)
		}
		want := prim.snapshot()
		if capture(t, s) {
			t.Fatal("50 pages fitted an arena of 16")
		}
		if got := s.arena.bytes(); got > 16*PageSize {
			t.Errorf("%d bytes are captured, more than the limit", got)
		}
		if must, _ := s.Pending(false); must == 0 || must == 50*PageSize {
			t.Errorf("%d bytes are said to be left in the guest", must)
		}
		reads, before := prim.reads, l.w.Transferred()
		l.complete(s)
		if prim.reads != reads {
			t.Error("SaveComplete read the dirty log again")
		}
		if l.w.Transferred()-before != int64(l.buf.Len()) {
			t.Error("guest memory is still queued when SaveComplete returns")
		}
		l.load(c)
		flush(t, c)
		wantMemory(t, "after the checkpoint", sec, want)
	})
}

func TestAbandonedCaptureLosesNothing(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		for _, deltas := range []int64{0, 1 << 20} {
			prim := newGuest(t, pages(t, "a", 20), pages(t, "b", 20))
			sec := prim.twin(t)
			s := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: deltas})
			c, l := k.cache(t, sec, CacheConfig{}), newLink(t)
			l.sync(s, c)
			for round := range byte(4) {
				prim.write(0, 5*PageSize+10, round+1)
				prim.write(1, 6*PageSize+10, round+1)
				capture(t, s)
				prim.write(0, 5*PageSize+20, round+7) // in the meantime
				switch round {
				case 0:
					capture(t, s)
				case 1:
					l.iterate(s)
				case 2:
					s.NewSession()
					if must, _ := s.Pending(false); must != 2*PageSize {
						t.Errorf("%d bytes are pending after a new session, want 2 pages", must)
					}
				case 3:
					s.SaveCleanup()
				}
				want := prim.snapshot()
				l.complete(s)
				l.load(c)
				flush(t, c)
				wantMemory(t, "after the checkpoint", sec, want)
			}
		}
	})
}
