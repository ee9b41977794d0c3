package ram

import (
	"io"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// A Saver holds memory for a capture that is somewhat larger than the last ones, not for
// the synchronisation before them, nor for a time in which the guest was busy.
func TestAGuestThatIsIdleHoldsLittleMemory(t *testing.T) {
	procs(t)
	g := newGuest(t, pages(t, "ram", 4000))
	s := NewSaver(g.blocks, g, SaverConfig{CaptureWorkers: 2})
	w := qemufile.NewWriter(io.Discard)
	if err := s.SaveSetup(w); err != nil {
		t.Fatal(err)
	}
	if s.arena.held < firstPrepare {
		t.Errorf("%d bytes are ready for the first capture", s.arena.held)
	}
	if err := s.SaveComplete(w); err != nil {
		t.Fatal(err)
	}
	checkpoints := func(n, dirty int) {
		t.Helper()
		for range n {
			for i := range dirty {
				g.write(0, i*PageSize, 1)
			}
			if whole, err := s.Capture(); err != nil || !whole {
				t.Fatal(whole, err)
			}
			if err := s.SaveComplete(w); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ dirty, least, most int }{{2, firstChunk, 2 * firstChunk}, {1000, 1000 * PageSize, 12 << 20}, {2, firstChunk, 2 * firstChunk}} {
		checkpoints(2*settleEvery, c.dirty) // one may have begun in another time
		sum := 0
		for _, chunk := range s.arena.chunks {
			sum += len(chunk)
		}
		if held := s.arena.held; held < c.least || held > c.most || held != sum {
			t.Errorf("%d bytes are held, in chunks of %d, for captures of %d pages", held, sum, c.dirty)
		}
	}
	// One large capture among many keeps its memory as long as it is remembered.
	checkpoints(settleEvery/2, 2)
	checkpoints(1, 1000)
	checkpoints(settleEvery/2-1, 2)
	if s.arena.held < 1000*PageSize {
		t.Errorf("%d bytes are held after one capture of 1000 pages", s.arena.held)
	}
}
