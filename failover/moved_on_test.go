package failover_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/failover/failovertest"
)

// A record that has gone on by more than one generation is no claim of this keeper whose answer was
// lost, whatever token is in it: somebody has written it. What was held is over.
func TestAGrantIsOverWhenTheRecordHasGoneOnByMoreThanOneGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan uint64, 1)
		store := new(failovertest.Store)
		k := keeperOn(t, store, "a", time.Second, func(generation uint64, _ error) { lost <- generation })
		defer run(t, k)()
		if _, err := k.Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for swapped := false; !swapped; {
			was, err := store.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			next := was
			next.Generation, next.Writes = was.Generation+2, was.Writes+2
			if swapped, err = store.Swap(t.Context(), was, next); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case generation := <-lost:
			if generation != 1 || k.Gate().Open() || k.Generation() != 0 {
				t.Errorf("generation %d is over; held: %d, open: %v", generation, k.Generation(), k.Gate().Open())
			}
		case <-time.After(time.Minute):
			t.Error("nobody is told")
		}
	})
}
