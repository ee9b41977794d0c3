package replication

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// A primary that is a QEMU flushes nothing at a checkpoint, so a checkpoint is
// that of a secondary's disk only because the secondary waits for it.
func TestModelOfAPrimaryThatDoesNotFlush(t *testing.T) {
	ctx := context.Background()
	seeds := uint64(150)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		const size = 16 * BlockSize
		disk, hidden, active := newPoweredFake(make([]byte, size)), newPoweredFake(make([]byte, 2*minJournal)), newPoweredFake(make([]byte, minJournal))
		j, err := OpenJournal(hidden, active)
		must(t, err)
		s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
		must(t, err)
		must(t, s.Start(ctx))
		checkpoint := bytes.Clone(disk.data)
		for epoch := range uint64(1 + rng.IntN(4)) {
			for range rng.IntN(5) {
				write(t, s.Export(), byte(1+rng.IntN(255)), rng.Int64N(size/SectorSize-8)*SectorSize, BlockSize)
			}
			must(t, s.Checkpoint(ctx, epoch+1))
			checkpoint = bytes.Clone(disk.data)
		}
		if rng.IntN(2) == 0 {
			write(t, s.Export(), 0xee, 0, size/2)
		}
		disk, hidden, active = disk.cutPower(rng), hidden.cutPower(rng), active.cutPower(rng)
		j, err = OpenJournal(hidden, active)
		must(t, err)
		if _, _, err := j.Recover(ctx, disk); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(disk.data, checkpoint) {
			t.Fatalf("seed %d: after a power cut and recovery it is not the disk of %v", seed, j)
		}
	}
}
