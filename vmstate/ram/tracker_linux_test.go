package ram

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/mapping"
)

// sharedMemory maps n pages of a file in memory.
func sharedMemory(t testing.TB, n int) []byte {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n*PageSize)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, n*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

// scribbler writes memory in every way that a host does.
type scribbler struct {
	r    *rand.Rand
	file *os.File // of random bytes
}

func newScribbler(t testing.TB, seed uint64) *scribbler {
	t.Helper()
	s := &scribbler{r: rand.New(rand.NewPCG(seed, 1))}
	var err error
	if s.file, err = os.Create(t.TempDir() + "/bytes"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.file.Close() })
	if _, err := s.file.Write(randomPage(s.r)); err != nil {
		t.Fatal(err)
	}
	return s
}

// write changes some bytes of page i, or writes the same bytes again.
func (s *scribbler) write(t testing.TB, b *Block, i int) {
	page := b.Host[i*PageSize : (i+1)*PageSize]
	at := s.r.IntN(PageSize - 64)
	switch s.r.IntN(5) {
	case 0:
		page[at]++
	case 1:
		clear(page)
	case 2:
		word := (*uint64)(unsafe.Pointer(&page[at&^7]))
		atomic.StoreUint64(word, *word)
	case 3:
		atomic.AddUint64((*uint64)(unsafe.Pointer(&page[at&^7])), 1)
	case 4: // a system call
		if n, err := s.file.ReadAt(page[at:at+64], 0); n != 64 {
			t.Fatal(err)
		}
	}
}

func TestTheTrackerReportsExactlyWhatWasWrittenIn10000Rounds(t *testing.T) {
	t.Parallel()
	rounds := 10_000
	if testing.Short() {
		rounds = 300
	}
	blocks := []Block{
		pages(t, "ram", 700),
		{Name: "shared", Host: sharedMemory(t, 130)},
		pages(t, "rom", 1),
		{Name: "empty"},
	}
	tr := newTracker(t, blocks...)
	s := newScribbler(t, 7)
	for round := range rounds {
		want := make(map[string]Bitmap)
		for i := range blocks {
			want[blocks[i].Name] = NewBitmap(len(blocks[i].Host) / PageSize)
		}
		for range s.r.IntN(24) {
			b := &blocks[s.r.IntN(3)]
			n := len(b.Host) / PageSize
			i := s.r.IntN(n)
			for run := 1 + s.r.IntN(4); run > 0 && i < n; run, i = run-1, i+1 {
				s.write(t, b, i)
				want[b.Name].Set(i)
			}
		}
		for i := range blocks {
			b := &blocks[i]
			if got := readDirty(t, tr, b); !slices.Equal(got, want[b.Name]) {
				t.Fatalf("round %d, block %q: pages %v, want %v", round, b.Name, slices.Collect(got.All()), slices.Collect(want[b.Name].All()))
			}
			if round%100 == 0 {
				if n := readDirty(t, tr, b).Count(); n != 0 {
					t.Fatalf("round %d, block %q: %d pages a second time", round, b.Name, n)
				}
			}
		}
	}
}

func TestNoWriteIsLostWhileTheTrackerIsRead(t *testing.T) {
	const n, writers = 256, 3
	b := pages(t, "ram", n)
	tr := newTracker(t, b)
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&b.Host[0])), len(b.Host)/8)
	mirror := make([]uint64, len(words))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 5))
			for !stop.Load() {
				atomic.AddUint64(&words[r.IntN(len(words))], 1)
			}
		})
	}
	take := func() {
		got := readDirty(t, tr, &b)
		for i := range got.All() {
			for j := i * PageSize / 8; j < (i+1)*PageSize/8; j++ {
				mirror[j] = atomic.LoadUint64(&words[j])
			}
		}
	}
	for range 200 {
		take()
	}
	stop.Store(true)
	wg.Wait()
	take()
	for j := range words {
		if words[j] != mirror[j] {
			t.Fatalf("word %d of page %d is %d, and the last report of the page had %d", j, j*8/PageSize, words[j], mirror[j])
		}
	}
}

func TestAHugePageThatIsWrittenIsReportedPageByPage(t *testing.T) {
	const huge, n = 2 << 20, 2
	raw := newMemory(t, (n+1)*huge)
	skip := -uintptr(unsafe.Pointer(&raw[0])) & (huge - 1)
	mem := raw[skip:][:n*huge]
	if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil {
		t.Skipf("no transparent huge pages: %v", err)
	}
	for i := range mem {
		mem[i] = 1
	}
	b := Block{Name: "ram", Host: mem}
	tr := newTracker(t, b)
	if got := readDirty(t, tr, &b).Count(); got != 0 {
		t.Errorf("%d pages before any write", got)
	}
	for _, i := range []int{3, 511, 512, 1000} {
		mem[i*PageSize] = 2
	}
	if got, want := slices.Collect(readDirty(t, tr, &b).All()), []int{3, 511, 512, 1000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheTrackerKnowsNothingWhileItIsOff(t *testing.T) {
	b := pages(t, "ram", 8)
	tr := newTracker(t, b)
	b.Host[0] = 1
	if err := tr.StartDirtyLog(); err != nil { // it is on: nothing is forgotten
		t.Fatal(err)
	}
	if got := readDirty(t, tr, &b); !got.Has(0) {
		t.Error("a start of a log that is on has forgotten a write")
	}
	if err := errors.Join(tr.StopDirtyLog(), tr.StopDirtyLog()); err != nil {
		t.Fatal(err)
	}
	b.Host[PageSize] = 1
	if err := tr.ReadDirty("ram", NewBitmap(8)); !errors.Is(err, ErrLogOff) {
		t.Errorf("read: %v", err)
	}
	if err := tr.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	b.Host[2*PageSize] = 1
	if got, want := slices.Collect(readDirty(t, tr, &b).All()), []int{2}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheTrackerRefusesWhatItCannotWatch(t *testing.T) {
	b := pages(t, "ram", 8)
	tr := newTracker(t, b)
	if err := tr.ReadDirty("rom", NewBitmap(8)); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("another block: %v", err)
	}
	if err := tr.ReadDirty("ram", nil); err == nil {
		t.Error("a bitmap that is too short was taken")
	}
	if _, err := NewTracker([]Block{{Name: "odd", Host: b.Host[8:][:PageSize]}}); err == nil {
		t.Error("memory that is not whole pages was taken")
	}
	other, err := NewTracker([]Block{pages(t, "first", 4), {Name: "taken", Host: b.Host}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.StartDirtyLog(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("memory that has a tracker: %v", err)
	}
	if err := other.ReadDirty("first", NewBitmap(4)); !errors.Is(err, ErrLogOff) {
		t.Errorf("after a start that failed: %v", err)
	}
	if err := errors.Join(other.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	if err := other.StartDirtyLog(); !errors.Is(err, ErrDiscarded) {
		t.Errorf("after Close: %v", err)
	}
}

func TestAfterAScanThatFailsEveryPageCountsAsWritten(t *testing.T) {
	mem, err := mapping.New(8 * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	b := Block{Name: "ram", Host: mem}
	tr := newTracker(t, b)
	if err := tr.fd.Unregister(mem[4*PageSize:]); err != nil {
		t.Fatal(err)
	}
	mem[0] = 1
	if err := tr.ReadDirty("ram", NewBitmap(8)); !errors.Is(err, unix.EPERM) {
		t.Fatalf("memory that is not registered: %v", err)
	}
	if err := tr.fd.Register(mem[4*PageSize:], 2); err != nil {
		t.Fatal(err)
	}
	if got := readDirty(t, tr, &b).Count(); got != 8 {
		t.Errorf("%d pages of 8", got)
	}
	if got := readDirty(t, tr, &b).Count(); got != 0 {
		t.Errorf("%d pages a second time", got)
	}
	if err := errors.Join(tr.Close(), mapping.Free(mem)); err != nil {
		t.Error(err)
	}
}

func TestMemoryThatTheHostDropsIsReported(t *testing.T) {
	b := pages(t, "ram", 32)
	for i := range b.Host {
		b.Host[i] = 1
	}
	tr := newTracker(t, b)
	if err := unix.Madvise(b.Host[4*PageSize:6*PageSize], unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	b.Host[4*PageSize], b.Host[5*PageSize] = 0, 0 // as the host must
	if got, want := slices.Collect(readDirty(t, tr, &b).All()), []int{4, 5}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestACacheOnATrackerCopiesOnlyWhatIsNew(t *testing.T) {
	eachCache(t, func(t *testing.T, k kind) {
		p, s := pages(t, "ram", 64), pages(t, "ram", 64)
		out := newTracker(t, p)
		in := newTracker(t, s)
		saver := NewSaver([]Block{p}, out, SaverConfig{})
		cache, err := NewCache([]Block{s}, in, k.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		r := rand.New(rand.NewPCG(3, 4))
		l := newLink(t)
		l.sync(saver, cache)
		for round := range 200 {
			dirty, rolled := map[int]bool{}, map[int]bool{}
			for range r.IntN(6) {
				i := r.IntN(64)
				p.Host[i*PageSize+r.IntN(PageSize)]++
				dirty[i] = true
			}
			for range r.IntN(6) {
				i := r.IntN(64)
				s.Host[i*PageSize+r.IntN(PageSize)]++
				rolled[i] = true
			}
			tell(t, cache, saver)
			if !capture(t, saver) {
				t.Fatal("the capture did not take everything")
			}
			l.complete(saver)
			l.load(cache)
			flush(t, cache)
			for i := range rolled {
				dirty[i] = true
			}
			if got := cache.Stats().Flushed; got != uint64(len(dirty)) {
				t.Fatalf("round %d: %d pages flushed, want the %d that a guest wrote", round, got, len(dirty))
			}
			if string(p.Host) != string(s.Host) {
				t.Fatalf("round %d: the guests differ", round)
			}
		}
	})
}

func TestReadingTheTrackerAllocatesNothing(t *testing.T) {
	b := pages(t, "ram", 64)
	tr := newTracker(t, b)
	got := NewBitmap(64)
	if n := testing.AllocsPerRun(100, func() {
		b.Host[9*PageSize]++
		if err := tr.ReadDirty("ram", got); err != nil {
			t.Error(err)
		}
		tr.ForgetDirty("ram")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
