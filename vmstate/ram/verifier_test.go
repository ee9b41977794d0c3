package ram

import (
	"errors"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// miss is a page that a verifier has named.
type miss struct {
	block  string
	offset uint64
}

// loggedGuest is a guest, or one with a log around its own.
type loggedGuest interface {
	DirtyLog
	memory() []Block
}

func (g *guest) memory() []Block { return g.blocks }

// newVerifier returns a running verifier of g's log, and what it has named so far.
func newVerifier(t *testing.T, g loggedGuest, paused *bool) (v *Verifier, named *[]miss) {
	t.Helper()
	named = new([]miss)
	v, err := NewVerifier(g.memory(), VerifierConfig{
		Log:    g,
		Paused: func() bool { return *paused },
		Missed: func(block string, offset uint64) { *named = append(*named, miss{block, offset}) },
	})
	require.Granted(t, require.Userfaultfd, err)
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := v.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	return v, named
}

func TestAWriteThatTheLogMissesIsNamedAndStillReported(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 16), pages(t, "vga", 4))
	paused := true
	v, named := newVerifier(t, g, &paused)
	g.write(0, 3*PageSize, 1)
	g.blocks[0].Host[5*PageSize+9] = 1 // by a device that does not say so
	g.blocks[1].Host[0] = 1
	if got, want := slices.Collect(readDirty(t, v, &g.blocks[0]).All()), []int{3, 5}; !slices.Equal(got, want) {
		t.Errorf("reported: %v, want %v", got, want)
	}
	if got, want := slices.Collect(readDirty(t, v, &g.blocks[1]).All()), []int{0}; !slices.Equal(got, want) {
		t.Errorf("reported: %v, want %v", got, want)
	}
	if want := []miss{{"ram", 5 * PageSize}, {"vga", 0}}; !slices.Equal(*named, want) || v.Missed() != 2 {
		t.Errorf("named %v (%d), want %v", *named, v.Missed(), want)
	}
	*named = nil
	g.write(0, 5*PageSize, 2)
	readDirty(t, v, &g.blocks[0])
	if *named != nil {
		t.Errorf("a write that was reported is named: %v", *named)
	}
}

func TestAPageWithTheSameContentsIsNotNamed(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 16))
	g.blocks[0].Host[2*PageSize] = 8
	paused := true
	v, named := newVerifier(t, g, &paused)
	g.blocks[0].Host[2*PageSize]++
	g.blocks[0].Host[2*PageSize]--
	if got := readDirty(t, v, &g.blocks[0]); !got.Has(2) {
		t.Error("the write is not reported")
	}
	if *named != nil {
		t.Errorf("named %v", *named)
	}
	g.write(0, 2*PageSize, 5)
	readDirty(t, v, &g.blocks[0])
	g.blocks[0].Host[2*PageSize] = 8 // not as at the last pause
	readDirty(t, v, &g.blocks[0])
	if want := []miss{{"ram", 2 * PageSize}}; !slices.Equal(*named, want) {
		t.Errorf("named %v, want %v", *named, want)
	}
}

func TestTheLogIsJudgedOnlyWhenTheGuestStandsStill(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 16))
	paused := false
	v, named := newVerifier(t, g, &paused)
	g.blocks[0].Host[4*PageSize] = 1 // written, and not yet marked
	if got := readDirty(t, v, &g.blocks[0]); !got.Has(4) {
		t.Error("the write is not reported")
	}
	g.dirty["ram"].Set(4) // now
	g.blocks[0].Host[6*PageSize] = 1
	readDirty(t, v, &g.blocks[0])
	if *named != nil {
		t.Errorf("named while the guest runs: %v", *named)
	}
	paused = true
	readDirty(t, v, &g.blocks[0])
	if want := []miss{{"ram", 6 * PageSize}}; !slices.Equal(*named, want) {
		t.Errorf("named %v, want %v", *named, want)
	}
}

func TestWhatTheHostWritesForAFlushIsNotNamed(t *testing.T) {
	p, s := newGuest(t, pages(t, "ram", 16)), newGuest(t, pages(t, "ram", 16))
	paused := true
	v, named := newVerifier(t, s, &paused)
	cache, err := NewCache(s.blocks, v, CacheConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	saver := NewSaver(p.blocks, p, SaverConfig{})
	l := newLink(t)
	l.sync(saver, cache)
	for range 3 {
		p.write(0, 2*PageSize, 1)
		s.write(0, 7*PageSize, 1)
		capture(t, saver)
		l.complete(saver)
		l.load(cache)
		flush(t, cache)
	}
	if *named != nil {
		t.Errorf("named %v", *named)
	}
	s.blocks[0].Host[9*PageSize] = 1
	flush(t, cache)
	if want := []miss{{"ram", 9 * PageSize}}; !slices.Equal(*named, want) {
		t.Errorf("named %v, want %v", *named, want)
	}
}

func TestAVerifierPassesOnTheErrorsOfTheLog(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 4))
	paused := true
	v, _ := newVerifier(t, g, &paused)
	g.fail = errors.New("broken")
	if err := v.ReadDirty("ram", NewBitmap(4)); !errors.Is(err, g.fail) {
		t.Errorf("%v", err)
	}
	if err := v.ReadDirty("rom", NewBitmap(4)); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("another block: %v", err)
	}
	if _, err := NewVerifier(g.blocks, VerifierConfig{Log: g}); err == nil {
		t.Error("a verifier that cannot tell anybody was made")
	}
}

// A page that the checked log leaves writable is known to be reported, and one that it does
// not report all the same is named.
func TestTheLogThatIsCheckedMayLeavePagesWritable(t *testing.T) {
	g := newKeeper(newGuest(t, pages(t, "ram", 16)))
	paused := true
	v, named := newVerifier(t, g, &paused)
	only := NewBitmap(16)
	only.Set(3)
	if !v.KeepDirty("ram", only) {
		t.Fatal("the checked log is not told")
	}
	for range 3 {
		g.write(0, 3*PageSize, g.blocks[0].Host[3*PageSize]+1)
		if got := slices.Collect(readDirty(t, v, &g.blocks[0]).All()); !slices.Equal(got, []int{3}) {
			t.Errorf("reported: %v, want page 3", got)
		}
	}
	if g.faults != 1 || *named != nil {
		t.Errorf("%d faults, and %v are named", g.faults, *named)
	}
	clear(g.dirty["ram"]) // a log that forgets what it has left writable
	g.blocks[0].Host[3*PageSize]++
	readDirty(t, v, &g.blocks[0])
	if want := []miss{{"ram", 3 * PageSize}}; !slices.Equal(*named, want) {
		t.Errorf("named %v, want %v", *named, want)
	}
	paused = false
	plain, _ := newVerifier(t, newGuest(t, pages(t, "ram", 16)), &paused)
	if plain.KeepDirty("ram", only) {
		t.Error("a log that leaves no page writable is said to do so")
	}
}
