package replication

import (
	"context"
	"testing"
	"testing/synctest"
)

// slowToGrow becomes longer when it is told to.
type slowToGrow struct {
	growingFake
	now chan struct{}
}

func (d slowToGrow) Grow(size int64) error {
	<-d.now
	return d.growingFake.Grow(size)
}

// A checkpoint that begins while the disk becomes longer waits for that, and has the writes of before on the
// connection that comes with the new length.
func TestACheckpointThatBeginsWhileADiskGrowsIsOneOfTheLongerDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		const size = testSize + BlockSize
		x := newRoomRig(t, SecondaryConfig{})
		now := make(chan struct{})
		x.p.local.Disk, x.s.disk.Disk = slowToGrow{growingFake{x.local}, now}, growingFake{x.disk}
		write(t, x.p, 0x22, 0, BlockSize)
		must(t, x.s.Grow(ctx, size))
		grown, marked := make(chan error, 1), make(chan error, 1)
		go func() {
			grown <- x.p.Grow(ctx, size, WithIdentity(DiskRemote(plainDisk{x.s.Export()}), NewIdentityDisk(x.s)))
		}()
		synctest.Wait()
		go func() { marked <- x.p.Mark(ctx, 1) }()
		synctest.Wait()
		select {
		case err := <-marked:
			t.Fatal("the checkpoint has not waited for the disk:", err)
		default:
		}
		close(now)
		must(t, <-grown)
		must(t, <-marked)
		must(t, x.s.Checkpoint(ctx, 1))
		must(t, x.p.Loaded(ctx, 1))
		want(t, "the checkpoint", x.s, 0x22, 0, BlockSize)
		write(t, x.p, 0x33, testSize, BlockSize)
		checkpointBoth(t, x.p, x.s, 2)
		want(t, "what is new, after the next one", x.s, 0x33, testSize, BlockSize)
	})
}
