package vmstate

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gocolo/lockstep/qemufile"
)

// A registry that has loaded other states, damaged ones among them, of which some were committed, and has saved and captured
// meanwhile, loads the next as a new registry does that has the state of the last commit.
func TestARegistryLoadsAsOneThatHasLoadedNothingElse(t *testing.T) {
	var from Registry
	if err := errors.Join(from.Register(allEntry, full()), from.Register(Entry{Name: "c", Version: 1}, &counter{N: 7})); err != nil {
		t.Fatal(err)
	}
	none, _, _ := fuzzed(t)
	whole := [][]byte{saved(t, &from), saved(t, none)}
	seeds := uint64(40)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		reg, d, c := fuzzed(t)
		held := whole[1] // what the last commit has left
		loads := 0
		for n := range 60 {
			state := append([]byte(nil), whole[r.IntN(2)]...)
			for range r.IntN(3) {
				state[r.IntN(len(state))] ^= 1 << r.IntN(8)
			}
			if r.IntN(4) == 0 {
				state = state[:r.IntN(len(state))]
			}
			fresh, d2, c2 := fuzzed(t)
			if err := errors.Join(fresh.LoadDevices(held, nil), fresh.Commit()); err != nil {
				t.Fatalf("seed %d, load %d: what was saved does not load: %v", seed, n, err)
			}
			if diff := cmp.Diff(d2, d, cmpopts.EquateEmpty()); diff != "" || c.N != c2.N {
				t.Fatalf("seed %d, load %d: before it there is %d, not %d, and %s", seed, n, c.N, c2.N, diff)
			}
			got, want := reg.Load(reader(state), nil), fresh.Load(reader(state), nil)
			if (got == nil) != (want == nil) || got != nil && got.Error() != want.Error() {
				t.Fatalf("seed %d, load %d: %v; a new registry says %v", seed, n, got, want)
			}
			if diff := cmp.Diff(d2, d, cmpopts.EquateEmpty()); diff != "" || c.N != c2.N {
				t.Fatalf("seed %d, load %d: %d, of a new registry %d, and %s", seed, n, c.N, c2.N, diff)
			}
			switch {
			case got != nil:
			case r.IntN(2) == 0:
				reg.Rollback()
			default:
				if err := errors.Join(reg.Commit(), fresh.Commit()); err != nil {
					t.Fatal(err)
				}
				loads++
				held = saved(t, reg)
				captured := written(t, func(w *qemufile.Writer) {
					w.Fail(errors.Join(reg.CaptureDevices(), reg.SaveCaptured(w)))
					PutEOF(w)
				})
				if string(captured) != string(held) {
					t.Fatalf("seed %d, load %d: what is captured is % x, what is saved % x", seed, n, captured, held)
				}
			}
		}
		if loads == 0 {
			t.Errorf("seed %d: nothing was loaded", seed)
		}
	}
}
