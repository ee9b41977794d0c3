package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// primaryOn returns a primary whose process has just begun.
func primaryOn(t *testing.T, local, dev *fakeDisk) *Primary {
	t.Helper()
	p, err := NewPrimary(reopened(t, local, dev), PrimaryConfig{Overwrite: true})
	must(t, err)
	return p
}

// protectFirst joins two sides and brings them to the checkpoint of epoch 0.
func protectFirst(t *testing.T, p *Primary, s *Secondary) {
	t.Helper()
	ctx := context.Background()
	must(t, joinOver(p, s))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	must(t, p.Mark(ctx, 0))
	must(t, s.Start(ctx))
	must(t, p.Loaded(ctx, 0))
	must(t, p.Start(ctx))
}

func checkpointBoth(t *testing.T, p *Primary, s *Secondary, epoch uint64) {
	t.Helper()
	ctx := context.Background()
	must(t, p.Mark(ctx, epoch))
	must(t, s.Checkpoint(ctx, epoch))
	must(t, p.Loaded(ctx, epoch))
}

func TestPrimaryThatComesBackCopiesWhatChanged(t *testing.T) {
	ctx := context.Background()
	const size = 16 * intentRegion
	local, ldev := newPoweredFake(bytes.Repeat([]byte{0x11}, size)), newMetaDevice(size)
	disk, dev := newPoweredFake(make([]byte, size)), newMetaDevice(size)
	p := primaryOn(t, local, ldev)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 3*intentRegion, SectorSize)
	checkpointBoth(t, p, s, 1)
	write(t, p, 0x33, 5*intentRegion, SectorSize)

	rng := rand.New(rand.NewPCG(1, 0)) // the primary's host loses its power
	local, ldev = local.cutPower(rng), ldev.cutPower(rng)
	p = primaryOn(t, local, ldev)
	if got := p.Dirty(); got != 2*intentRegion {
		t.Errorf("%d bytes are to be copied, want two regions, of %d", got, size)
	}
	write(t, p, 0x44, 9*intentRegion, SectorSize) // its guest goes on at once
	if g := p.Identity(); g.Generation.Number != s.Identity().Generation.Number+1 {
		t.Errorf("the primary goes on alone as %v, its secondary was %v", g, s.Identity())
	}
	must(t, joinOver(p, s))
	if got, most := p.Dirty(), int64(3*intentRegion); got > most {
		t.Errorf("%d bytes are to be copied, want at most %d", got, most)
	}
	must(t, p.Synchronise(ctx, SyncConfig{}))
	must(t, p.Mark(ctx, 2))
	wantBytes(t, "the copy", disk.data, local.data, 0)

	// The secondary was replaced: the bitmap says nothing of the new one.
	p = primaryOn(t, local, ldev)
	s, err = NewSecondary(newFake(size, 0), SecondaryConfig{})
	must(t, err)
	must(t, joinOver(p, s))
	if got := p.Dirty(); got != size {
		t.Errorf("%d bytes are to be copied to a blank disk, want all %d", got, size)
	}
}

func TestARegionIsMarkedBeforeItIsWritten(t *testing.T) {
	const size = 8 * intentRegion
	local, ldev := newPoweredFake(make([]byte, size)), newMetaDevice(size)
	s, err := NewSecondary(newFake(size, 0), SecondaryConfig{})
	must(t, err)
	p := primaryOn(t, local, ldev)
	protectFirst(t, p, s)
	for r := range int64(8) {
		off := r * intentRegion
		local.failWrite = func(int64, int) error {
			again := primaryOn(t, newFake(size, 0), ldev.stableCopy())
			if !again.peer.dirty.Any(off, SectorSize) {
				t.Errorf("region %d is written before stable storage says so", r)
			}
			return nil
		}
		write(t, p, 0x22, off, SectorSize)
	}
	local.failWrite = nil
	syncs := ldev.syncs
	write(t, p, 0x33, 0, size)
	if ldev.syncs != syncs {
		t.Error("a region that is marked is marked again")
	}
	ldev.failWrite = func(int64, int) error { return errInjected }
	checkpointBoth(t, p, s, 1) // few regions: nothing is to be written
	write(t, p, 0x44, 0, SectorSize)
}

func TestWhatMustBeReadAgainIsBounded(t *testing.T) {
	const size = 3 * intentActive * intentRegion
	local := &sparseFake{fakeDisk: newFake(0, 0), size: size}
	ldev := newMetaDevice(size)
	p, err := NewPrimary(&sparseKept{local, reopened(t, local.fakeDisk, ldev).meta}, PrimaryConfig{InSync: true})
	must(t, err)
	far := &sparseFake{fakeDisk: newFake(0, 0), size: size}
	must(t, p.Attach(newFakeRemote(far, 1)))
	must(t, p.Start(t.Context()))
	marked := func() (n int) {
		again, err := openIntent(newStableDisk(ldev.stableCopy(), ""), size)
		must(t, err)
		again.marked(func(int64, int64) { n++ })
		return n
	}
	for epoch := range uint64(3 * intentActive / 16) {
		for r := range int64(16) {
			write(t, p, 0x22, (int64(epoch)*16+r)*intentRegion, SectorSize)
		}
		must(t, p.Mark(t.Context(), epoch+1))
		must(t, p.Loaded(t.Context(), epoch+1))
		if got := marked(); got > intentActive+16 {
			t.Fatalf("%d regions are marked, want at most %d", got, intentActive)
		}
	}
	if got := marked(); got == 0 {
		t.Error("nothing is marked: each write costs a sync")
	}
}

func TestMarkingAllocatesNothing(t *testing.T) {
	dev := newMetaDevice(testSize)
	it, err := openIntent(newStableDisk(dev, ""), testSize)
	must(t, err)
	if n := testing.AllocsPerRun(100, func() { it.ensure(0, BlockSize) }); n != 0 {
		t.Errorf("%v allocations for a region that is marked", n)
	}
}

// A bitmap that a power cut has left half written calls no region the same that
// differs.
func TestBitmapAfterAPowerCut(t *testing.T) {
	const size = 2 * intentSectorBits * intentRegion // two sectors
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		dev := newMetaDevice(size)
		it, err := openIntent(newStableDisk(dev, ""), size)
		must(t, err)
		must(t, it.settle(func(int64, int64) bool { return false }, nil))
		dev.power = &power{left: rng.IntN(12)}
		need := map[int64]bool{}
		for range 40 {
			r := rng.Int64N(2 * intentSectorBits)
			if it.ensure(r*intentRegion, 1) != nil {
				break
			}
			need[r] = true
		}
		dev = dev.cutPower(rng)
		it, err = openIntent(newStableDisk(dev, ""), size)
		must(t, err)
		it.marked(func(off, _ int64) { delete(need, off/intentRegion) })
		if len(need) > 0 {
			t.Fatalf("seed %d: regions %v were marked, and are not", seed, need)
		}
	}
	dev := newMetaDevice(size)
	dev.data[metadataHead+7] = 1 // not with this checksum
	it, err := openIntent(newStableDisk(dev, ""), size)
	must(t, err)
	n := 0
	it.marked(func(int64, int64) { n++ })
	if n != intentSectorBits {
		t.Errorf("a sector that cannot be read marks %d regions, want all %d", n, intentSectorBits)
	}
}

// stableCopy returns the disk as a power cut leaves it that takes all that may be lost.
func (d *fakeDisk) stableCopy() *fakeDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newPoweredFake(d.stable(0, d.Size()))
}

// sparseFake is a large disk of which only writes are counted.
type sparseFake struct {
	*fakeDisk
	size int64
}

func (d *sparseFake) Size() int64 { return d.size }

func (d *sparseFake) WriteAt(p []byte, off int64) (int, error) {
	return len(p), checkRange(off, int64(len(p)), d.size)
}

func (d *sparseFake) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), checkRange(off, int64(len(p)), d.size)
}

type sparseKept struct {
	*sparseFake
	meta *Metadata
}

func (d *sparseKept) Metadata() (*Metadata, error) { return d.meta, nil }
