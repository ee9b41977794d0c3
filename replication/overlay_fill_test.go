package replication

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// filled returns a disk whose blocks are of zeroes, or not, at random.
func filled(size int64, rng *rand.Rand) *fakeDisk {
	d := newFake(int(size), 0)
	for b := int64(0); b*BlockSize < size; b++ {
		if rng.IntN(2) == 0 {
			d.data[min(b*BlockSize+int64(rng.IntN(BlockSize)), size-1)] = byte(1 + rng.IntN(255))
		}
	}
	return d
}

// TestFillHoldsWhatPutHolds saves ranges of a disk in two overlays, in one of them by way
// of a buffer: both hold the same, in as much room.
func TestFillHoldsWhatPutHolds(t *testing.T) {
	const size = 300*BlockSize + SectorSize
	const blocks = 301
	for seed := range require.Many[uint64](8, 40, 40) {
		rng := rand.New(rand.NewPCG(seed, 7))
		d := filled(size, rng)
		o := newOverlay("hidden", size, size*2, newMemorySlots(size*2))
		ref := newOverlay("hidden", size, size*2, newMemorySlots(size*2))
		for range 2 { // the second time after it has been emptied
			held := map[int64]bool{}
			for range 40 {
				b0 := rng.Int64N(blocks)
				b1 := b0
				for b1 < blocks && b1-b0 < 1+rng.Int64N(lendAtOnce) && !held[b1] {
					held[b1] = true
					b1++
				}
				if b0 == b1 {
					continue
				}
				if able, _, err := o.fill(d, size, b0, b1); !able || err != nil {
					t.Fatalf("seed %d: fill of [%d, %d): %v, %v", seed, b0, b1, able, err)
				}
				for b := b0; b < b1; b++ {
					p := d.data[b*BlockSize : min((b+1)*BlockSize, size)]
					var err error
					if isZero(p) {
						_, err = ref.putZeroes(b, b+1, size)
					} else {
						_, err = ref.put(b, b+1, p)
					}
					must(t, err)
				}
			}
			if got, want := o.usedBytes(), ref.usedBytes(); got != want {
				t.Fatalf("seed %d: fill has taken %d bytes, put %d", seed, got, want)
			}
			slots := map[uint32]bool{}
			for b := int64(0); b < blocks; b++ {
				got, want := o.lookup(b), ref.lookup(b)
				if got.data != want.data || got.zero != want.zero {
					t.Fatalf("seed %d, block %d: fill holds %+v, put %+v", seed, b, got, want)
				}
				if got.data == 0 {
					continue
				}
				if slots[got.slot] {
					t.Fatalf("seed %d: two blocks have slot %d", seed, got.slot)
				}
				slots[got.slot] = true
				p := d.data[b*BlockSize : min((b+1)*BlockSize, size)]
				q := make([]byte, len(p))
				must(t, o.store.readSlot(got.slot-1, q, 0))
				if !bytes.Equal(p, q) {
					t.Fatalf("seed %d: block %d has another content", seed, b)
				}
			}
			if int(o.next) > len(slots)+lendAtOnce {
				t.Fatalf("seed %d: %d slots have been made for %d blocks, though one call at a time lends no more than %d", seed, o.next, len(slots), lendAtOnce)
			}
			o.reset()
			ref.reset()
		}
	}
}

func TestFillOfAFullOverlayTakesNothing(t *testing.T) {
	const size = 64 * BlockSize
	const bound = (leafCost + 4) * BlockSize
	d := newFake(size, 0)
	for i := range d.data {
		d.data[i] = 1
	}
	o := newOverlay("hidden", size, bound, newMemorySlots(bound))
	if _, _, err := o.fill(d, size, 0, 4); err != nil {
		t.Fatal(err)
	}
	for range 3 * maxLent {
		if _, _, err := o.fill(d, size, 4, 40); !errors.Is(err, ErrFull) {
			t.Fatalf("beyond the bound: %v", err)
		}
	}
	if o.usedBytes() != bound || o.lookup(4).held() != 0 || o.lent != 0 {
		t.Errorf("it has taken %d bytes of %d, and %d slots are lent", o.usedBytes(), bound, o.lent)
	}
	clear(d.data)
	if _, _, err := o.fill(d, size, 4, 40); err != nil {
		t.Errorf("blocks of zeroes, which need no room: %v", err)
	}
	if o.usedBytes() != bound {
		t.Errorf("blocks of zeroes have taken room: %d bytes, not %d", o.usedBytes(), bound)
	}
}

func TestFillThatCannotReadHoldsNothing(t *testing.T) {
	const size = 256 * BlockSize
	d := newFake(size, 0)
	d.failRead = func(off int64, n int) error {
		if off+int64(n) > 70*BlockSize {
			return errInjected
		}
		return nil
	}
	o := newOverlay("hidden", size, size*2, newMemorySlots(size*2))
	for range 3 * maxLent {
		if able, _, err := o.fill(d, size, 40, 100); !able || err == nil {
			t.Fatalf("of a disk that cannot be read: %v, %v", able, err)
		}
	}
	if !o.empty() || o.usedBytes() != 0 || o.lent != 0 {
		t.Errorf("it has taken %d bytes, and %d slots are lent", o.usedBytes(), o.lent)
	}
}

func TestFillAllocatesNothing(t *testing.T) {
	const blocks = 1024
	const size = blocks * BlockSize
	d := filled(size, rand.New(rand.NewPCG(1, 2)))
	o := newOverlay("hidden", size, size*2, newMemorySlots(size*2))
	one := func() {
		for b := int64(0); b < blocks; b += 16 {
			if _, _, err := o.fill(d, size, b, b+16); err != nil {
				t.Fatal(err)
			}
		}
		o.reset()
	}
	one()
	if n := testing.AllocsPerRun(20, one); n != 0 {
		t.Errorf("%v allocations to save a disk", n)
	}
}
