package filter

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// The ring against a slice of slices, with frames of all sizes, under a limit
// that it meets often.
func TestRingIsAQueueOfFrames(t *testing.T) {
	seeds, steps := require.Many[uint64](4, 8, 20), 20000 // each limit once at least
	if testing.Short() {
		steps = 5000
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 1))
		limit := 1 << (17 + seed%4)
		r := ring{limit: limit}
		var want [][]byte
		used, refused, moved := 0, 0, 0
		var draft, made []byte // what is being made, and what it is to be
		for step := range steps {
			switch {
			case draft == nil && rnd.IntN(20) == 0:
				size := 1 + rnd.IntN(1<<rnd.IntN(16))
				fits := r.fits(size)
				if draft = r.draft(size); (draft != nil) != fits || fits && len(draft) != size {
					t.Fatalf("seed %d step %d: fits says %t, draft has %d bytes", seed, step, fits, len(draft))
				}
				made = bytes.Repeat([]byte{byte(step)}, size)
				continue
			case draft != nil && rnd.IntN(20) == 0:
				r.scrap()
				draft = nil
				continue
			case draft != nil && rnd.IntN(10) == 0:
				copy(draft, made)
				if in := r.drafted; !r.fits(len(made)) {
					r.scrap()
				} else if !r.adopt(draft) {
					t.Fatalf("seed %d step %d: %d bytes fit, and are not adopted", seed, step, len(made))
				} else {
					want = append(want, made)
					used += slot(len(made))
					if !in {
						moved++
					}
				}
				draft = nil
				continue
			case draft != nil: // it is written as slowly as can be
				draft[rnd.IntN(len(draft))] = 0xdb
			}
			if rnd.IntN(100) < 50 || step%5000 > 4000 && rnd.IntN(10) < 3 {
				size := 1 + rnd.IntN(1<<rnd.IntN(16))
				p := bytes.Repeat([]byte{byte(step)}, size)
				fits := r.fits(size)
				ok := r.push(p)
				if ok != fits {
					t.Fatalf("seed %d step %d: fits says %t, push %t", seed, step, fits, ok)
				}
				if ok {
					want = append(want, p)
					used += slot(size)
				} else {
					refused++
					if len(want) == 0 || used+2*slot(size) < limit/2 {
						t.Fatalf("seed %d step %d: refused %d bytes with %d of %d used", seed, step, size, used, limit)
					}
				}
			} else if r.n > 0 {
				if !bytes.Equal(r.front(), want[0]) {
					t.Fatalf("seed %d step %d: another frame", seed, step)
				}
				r.pop()
				used -= slot(len(want[0]))
				want = want[1:]
			}
			if r.n != len(want) || len(r.mem) > limit || r.used() < used {
				t.Fatalf("seed %d step %d: %d frames, want %d; memory %d; used %d, want %d", seed, step, r.n, len(want), len(r.mem), r.used(), used)
			}
			if step%997 == 0 {
				i := 0
				r.each(r.n, func(p []byte) {
					if !bytes.Equal(p, want[i]) {
						t.Fatalf("seed %d step %d: frame %d of the walk is another", seed, step, i)
					}
					i++
				})
			}
		}
		if moved == 0 {
			t.Errorf("seed %d: nothing was pushed while something was made", seed)
		}
		if refused == 0 && limit == 1<<17 {
			t.Errorf("seed %d: never full", seed)
		}
	}
}

// A frame that comes while another is made moves the frames, so that they stay whole, and not
// into twice the memory each time.
func TestAFrameThatComesWhileAnotherIsMadeNeedsNoLargerMemory(t *testing.T) {
	r := ring{limit: 1 << 20}
	for range 100 {
		draft := r.draft(100)
		if !r.push(make([]byte, 50)) || !r.adopt(draft) {
			t.Fatal("two small frames do not fit")
		}
		r.pop()
		r.pop()
	}
	if len(r.mem) != ringMin {
		t.Errorf("two small frames at a time take %d bytes, want %d", len(r.mem), ringMin)
	}
}
