package ram

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A page whose difference is too long twice in turn goes whole, uncompared, for a while
// that grows; one that is written little again is sent as a difference again.
func TestAPageWhoseDifferenceIsTooLongIsLeftAlone(t *testing.T) {
	for _, ahead := range []bool{false, true} {
		name := "with a checkpoint"
		if ahead {
			name = "ahead of it"
		}
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 6))
			prim := newGuest(t, pages(t, "ram", 4))
			sec := prim.twin(t)
			s, c, l := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 1 << 20}), newCache(t, sec, CacheConfig{}), newLink(t)
			l.sync(s, c)
			checkpoint := func() {
				t.Helper()
				if ahead {
					s.Pending(true)
					if _, err := s.SaveIterate(l.w); err != nil {
						t.Fatal(err)
					}
				} else {
					capture(t, s)
				}
				l.complete(s)
				l.load(c)
				wantSameDeltas(t, s, c)
				flush(t, c)
				wantSame(t, "after a checkpoint", sec, prim)
			}
			var kept []int // checkpoints that kept the page to compare it with the next
			for i := range 100 {
				prim.write(0, 0, randomPage(r)...)
				prim.write(0, PageSize, byte(i)+1) // a page beside it, with little
				checkpoint()
				if s.deltas.Get(pageKey(0, 0)) != nil {
					kept = append(kept, i)
				}
				if got := s.Stats().XBZRLEPages; i > 0 && got != 1 {
					t.Fatalf("checkpoint %d: %d differences", i, got)
				}
			}
			// Two differences too long, 4 whole, kept, one too long, 8 whole, and so on.
			if want := []int{0, 1, 7, 17, 35, 69}; !slices.Equal(kept, want) {
				t.Errorf("kept at %v, want %v", kept, want)
			}
			for i := 0; ; i++ {
				prim.write(0, 100, byte(i), 7)
				if checkpoint(); s.Stats().XBZRLEPages == 1 {
					break
				}
				if i > maxWhole+1 {
					t.Fatal("no difference is tried any more")
				}
			}
			if got := s.blocks[0].marks[0]; got != (deltaMark{}) {
				t.Errorf("%+v after a difference", got)
			}
			// And is not left alone for one page that is new.
			prim.write(0, 0, randomPage(r)...)
			checkpoint()
			prim.write(0, 100, 1)
			if checkpoint(); s.Stats().XBZRLEPages != 1 {
				t.Error("one difference too long, and the next is not tried")
			}
		})
	}
}

// A page goes beside the stream unless its difference, which goes in the stream, has at most
// half a page.
func TestALongDifferenceGoesWholeBesideTheStream(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 2))
	sec := prim.twin(t)
	r := rand.New(rand.NewPCG(1, 1))
	s, c, l := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 64 * PageSize}), newCache(t, sec, CacheConfig{}), newLink(t)
	l.sync(s, c)
	x := beside(t, s, c)
	for i, want := range []int{2, 1} {
		prim.write(0, 0, randomPage(r)[:PageSize/2+1]...)
		prim.write(0, PageSize, randomPage(r)[:PageSize/2-100]...)
		capture(t, s)
		x.total = 0
		l.complete(s)
		l.load(c)
		flush(t, c)
		if x.total != want {
			t.Errorf("checkpoint %d: %d pages left the stream, want %d", i, x.total, want)
		}
	}
	wantSame(t, "after it", sec, prim)
}
