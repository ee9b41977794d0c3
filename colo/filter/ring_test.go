package filter

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// The ring against a slice of slices, with frames of all sizes, under a limit
// that it meets often.
func TestRingIsAQueueOfFrames(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4 // each limit once
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 1))
		limit := 1 << (17 + seed%4)
		r := ring{limit: limit}
		var want [][]byte
		used, refused := 0, 0
		for step := range 20000 {
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
		if refused == 0 && limit == 1<<17 {
			t.Errorf("seed %d: never full", seed)
		}
	}
}
