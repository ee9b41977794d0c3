package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestCheckpointDropsWhatTheSecondaryGuestWrote(t *testing.T) {
	ctx := context.Background()
	s, _ := newSecondary(t, SecondaryConfig{})
	write(t, s, 0x33, 0, half)
	must(t, s.Checkpoint(ctx, 1))
	want(t, "back to the checkpoint", s, 0x11, 0, testSize)
	if a, h := s.OverlayBytes(); a != 0 || h != 0 {
		t.Errorf("overlays hold %d and %d bytes after a checkpoint", a, h)
	}
}

func TestCheckpointSyncsTheDiskFirst(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, 512)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "checkpoint", s.Checkpoint(ctx, 1), errInjected)
	want(t, "the old view is intact", s, 0x11, 0, 512)
	disk.failSync = nil
	wantErr(t, "and stays so", s.Checkpoint(ctx, 1), errInjected)

	s, disk = newSecondary(t, SecondaryConfig{})
	n := disk.syncs
	write(t, s.Export(), 0x22, 0, 512)
	must(t, s.Prepare(ctx, 1))
	must(t, s.Checkpoint(ctx, 1))
	if disk.syncs != n+1 {
		t.Errorf("%d syncs for one prepared checkpoint, want one", disk.syncs-n)
	}
}

func TestCheckpointWaitsForASyncThatIsUnderWay(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	slow := &slowSync{fakeDisk: disk, begun: make(chan struct{}), end: make(chan error)}
	s.disk.Disk = slow
	write(t, s.Export(), 0x22, 0, 512)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Export().Sync(); !errors.Is(err, errInjected) {
			t.Errorf("flush: %v", err)
		}
	})
	<-slow.begun
	checkpointed := make(chan error, 1)
	wg.Go(func() { checkpointed <- s.Checkpoint(ctx, 1) })
	select {
	case err := <-checkpointed:
		t.Errorf("a checkpoint has not waited for a flush that is under way: %v", err)
		checkpointed <- errInjected
	case <-time.After(20 * time.Millisecond): // it waits, or has not begun
	}
	slow.end <- errInjected
	wantErr(t, "checkpoint", <-checkpointed, errInjected)
	wg.Wait()
	want(t, "the old view is intact", s, 0x11, 0, 512)
}

// slowSync is a disk whose first Sync waits for its end. Others succeed.
type slowSync struct {
	*fakeDisk
	once  sync.Once
	begun chan struct{}
	end   chan error
}

func (d *slowSync) Sync() (err error) {
	d.once.Do(func() {
		close(d.begun)
		err = <-d.end
	})
	return err
}

func TestPreparingThatFailsIsFinal(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, 512)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "prepare", s.Prepare(ctx, 1), errInjected)
	disk.failSync = nil // what was lost, a second sync would not tell
	wantErr(t, "prepare again", s.Prepare(ctx, 1), errInjected)
	wantErr(t, "checkpoint", s.Checkpoint(ctx, 1), errInjected)
	want(t, "the old view is intact", s, 0x11, 0, 512)
}

func TestEpochsDoNotGoBack(t *testing.T) {
	ctx := context.Background()
	s, _ := newSecondary(t, SecondaryConfig{})
	must(t, s.Checkpoint(ctx, 5))
	wantErr(t, "an earlier epoch", s.Checkpoint(ctx, 4), ErrEpoch)
	if s.Epoch() != 5 {
		t.Errorf("epoch %d", s.Epoch())
	}
}

func TestPreparedDiskRefusesThePrimaryUntilItsCheckpoint(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	x := s.Export()
	must(t, s.Checkpoint(ctx, 4))
	write(t, x, 0x22, 0, 512)
	must(t, s.Prepare(ctx, 5))
	must(t, s.Prepare(ctx, 5)) // by a session, and then by its Group
	wantErr(t, "an earlier epoch", s.Prepare(ctx, 3), ErrEpoch)
	wantErr(t, "an earlier epoch", s.Checkpoint(ctx, 3), ErrEpoch)
	_, err := x.WriteAt(make([]byte, 512), 512)
	wantErr(t, "late traffic", err, ErrGated)
	want(t, "which does not reach the disk", disk, 0x11, 512, 512)
	want(t, "the guest's view is that of before", s, 0x11, 0, 1024)
	write(t, s, 0x33, 1024, 512) // the guest is not stopped by it
	must(t, s.Checkpoint(ctx, 5))
	want(t, "the checkpoint", s, 0x22, 0, 512)
	write(t, x, 0x44, 512, 512)
	must(t, s.Err())
}
