package replication

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// An overlay of a large disk, of which every generation uses other parts, and
// some again.
func TestLeavesAreReusedAndListedOnce(t *testing.T) {
	const disk = 64 << 30
	const perGeneration = 40
	rng := rand.New(rand.NewPCG(1, 2))
	o := newOverlay("active", disk, 1<<20, newMemorySlots(1<<20))
	allocated := func() int {
		n := 0
		for i := range o.dir {
			if o.dir[i].Load() != nil {
				n++
			}
		}
		return n
	}
	for generation := range 200 {
		if generation == 100 {
			o.gen.Store(math.MaxUint32) // the next reset begins anew
		}
		used := make(map[uint32]bool)
		for range perGeneration {
			b := rng.Int64N(200) * leafBlocks // of 200 leaves, so that some are used again
			if generation%2 == 0 {
				b = rng.Int64N(disk / BlockSize)
			}
			if _, err := o.reserve(b, b+1, true); err != nil {
				t.Fatal(err)
			}
			o.hold(b, 1, 0)
			used[uint32(b/leafBlocks)] = true
		}
		got := o.leavesInUse()
		if len(got) != len(used) || slices.ContainsFunc(got, func(l uint32) bool { return !used[l] }) {
			t.Fatalf("generation %d uses the leaves %v, the overlay lists %v", generation, used, got)
		}
		o.reset()
		if !o.empty() || o.usedBytes() != 0 || len(o.leavesInUse()) != 0 {
			t.Fatalf("generation %d has left something", generation)
		}
		sorted := slices.Sorted(slices.Values(o.stale))
		if len(slices.Compact(sorted)) != len(o.stale) {
			t.Fatalf("generation %d: a leaf is listed twice for reuse", generation)
		}
	}
	if n := allocated(); n > perGeneration || n != len(o.stale) {
		t.Errorf("%d leaves are allocated and %d listed for reuse, want no more than the %d that a generation uses", n, len(o.stale), perGeneration)
	}
}

// A checkpoint, for which both guests wait, empties the overlays.
func TestEmptyingAnOverlayAllocatesNothing(t *testing.T) {
	const disk = 64 << 30
	runs := 20
	if testing.Short() {
		runs = 5
	}
	n := 1.0
	for tries := 3; n != 0 && tries > 0; tries-- { // what else the process allocates meanwhile counts too
		var full []*overlay
		for range runs + 1 { // one to warm up
			o := newOverlay("active", disk, 64<<20, newMemorySlots(64<<20))
			for b := int64(0); b < disk/BlockSize; b += 17 * leafBlocks {
				if _, err := o.reserve(b, b+1, false); err != nil {
					t.Fatal(err)
				}
				o.hold(b, 0, 1)
			}
			full = append(full, o)
		}
		i := 0
		n = testing.AllocsPerRun(runs, func() { full[i].reset(); i++ })
	}
	if n != 0 {
		t.Errorf("%v allocations to empty an overlay", n)
	}
}
