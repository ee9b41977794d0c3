package replication

import (
	"context"
	"testing"
)

func TestFailoverUndoesThePrimarysWrites(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, testSize)
	must(t, s.Stop(context.Background(), true))
	want(t, "the last checkpoint", disk, 0x11, 0, testSize)
}

func TestStopWithoutFailoverRestoresTheLastCheckpoint(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, half)
	must(t, s.Checkpoint(ctx, 1))
	write(t, s.Export(), 0x44, 0, testSize)
	write(t, s, 0x33, 0, half)
	disk.failWrite = func(off int64, n int) error {
		if off > 0 {
			return errInjected
		}
		return nil
	}
	wantErr(t, "stop", s.Stop(ctx, false), errInjected)
	want(t, "the guest's view is unchanged", s, 0x33, 0, half)
	want(t, "the guest's view is unchanged", s, 0x11, half, half)
	disk.failWrite = nil
	must(t, s.Stop(ctx, false))
	for _, d := range []Disk{s, disk} {
		want(t, "the checkpoint", d, 0x22, 0, half)
		want(t, "the checkpoint", d, 0x11, half, half)
	}
	if s.State() != Done || s.Err() != nil {
		t.Errorf("state %v, error %v", s.State(), s.Err())
	}
}

func TestCommitThatFailsLeavesAUsableDiskAndMayBeRepeated(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, half)
	write(t, s, 0x33, half, BlockSize)
	fail := func(int64, int) error { return errInjected }
	disk.failWrite = fail
	wantErr(t, "stop", s.Stop(ctx, true), errInjected)
	if s.State() != FailoverFailed {
		t.Fatalf("state %v", s.State())
	}
	wantErr(t, "it sticks", s.Err(), errInjected)
	wantErr(t, "no checkpoint", s.Checkpoint(ctx, 1), ErrNotRunning)
	wantErr(t, "no start", s.Start(ctx), ErrRunning)

	// A write across the border of what the overlays hold is split.
	disk.failWrite = nil
	write(t, s, 0x55, half, 2*BlockSize)
	want(t, "beyond the overlays the disk is written", disk, 0x55, half+BlockSize, BlockSize)
	want(t, "what an overlay holds is written there", disk, 0x11, half, BlockSize)
	want(t, "the guest sees one disk", s, 0x55, half, 2*BlockSize)

	must(t, s.Stop(ctx, true))
	must(t, s.Err())
	for _, d := range []Disk{s, disk} {
		want(t, "the checkpoint", d, 0x11, 0, half)
		want(t, "the guest's writes", d, 0x55, half, 2*BlockSize)
	}
}

func TestDeferredCommitTakesWritesMeanwhile(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{DeferCommit: true})
	write(t, s.Export(), 0x22, 0, half)
	write(t, s, 0x33, half, half)
	must(t, s.Stop(ctx, true))
	if s.State() != Failover {
		t.Fatalf("state %v", s.State())
	}
	want(t, "nothing is copied yet", disk, 0x22, 0, half)
	want(t, "the guest sees its own disk", s, 0x11, 0, half)
	write(t, s, 0x44, 0, BlockSize)

	canceled, cancel := context.WithCancel(ctx)
	cancel()
	wantErr(t, "commit", s.Commit(canceled), context.Canceled)
	if s.State() != Failover {
		t.Fatalf("state %v after an interrupted commit", s.State())
	}
	must(t, s.Sync()) // a flush cannot be answered before the commit
	if s.State() != Done {
		t.Fatalf("state %v", s.State())
	}
	want(t, "written meanwhile", disk, 0x44, 0, BlockSize)
	want(t, "the checkpoint", disk, 0x11, BlockSize, half-BlockSize)
	want(t, "own writes", disk, 0x33, half, half)
}

func TestOverlayThatFillsUpInFailoverIsCommitted(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{DeferCommit: true, ActiveBytes: 4 * BlockSize})
	write(t, s.Export(), 0x22, 0, 16*BlockSize)
	must(t, s.Stop(ctx, true))
	write(t, s, 0x33, 0, 8*BlockSize) // more than the active overlay has room for
	want(t, "own writes", s, 0x33, 0, 8*BlockSize)
	want(t, "own writes", disk, 0x33, 0, 8*BlockSize)
	want(t, "the checkpoint", disk, 0x11, 8*BlockSize, 8*BlockSize)
}

func TestPromotedDiskIsProtectedAnew(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{DeferCommit: true})
	write(t, s.Export(), 0x22, 0, half)
	write(t, s, 0x33, 0, BlockSize)
	must(t, s.Stop(ctx, true))
	if s.State() != Failover {
		t.Fatalf("state %v, want that the commit is still to be done", s.State())
	}
	p, err := NewPrimary(s, PrimaryConfig{Overwrite: true}) // the guest's disk from now on
	must(t, err)
	write(t, p, 0x44, BlockSize, BlockSize)
	next := newFake(testSize, 0)
	must(t, p.Attach(newFakeRemote(next, 1)))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	must(t, p.Start(ctx))
	write(t, p, 0x55, half, BlockSize)
	must(t, p.Mark(ctx, 0)) // whose sync commits what the failover left to be done
	if s.State() != Done {
		t.Errorf("state %v of the promoted disk after a mark", s.State())
	}
	for _, d := range []Disk{disk, next} {
		want(t, "the guest's write before the failover", d, 0x33, 0, BlockSize)
		want(t, "its write while that was committed", d, 0x44, BlockSize, BlockSize)
		want(t, "the last checkpoint", d, 0x11, 2*BlockSize, half-2*BlockSize)
		want(t, "its write since it is protected again", d, 0x55, half, BlockSize)
	}
}

// A write that failed, other than for want of room, tells that the device cannot be relied on, whatever it says next.
func TestAJournalWhoseMapCouldNotBeWrittenIsNotTriedAgain(t *testing.T) {
	ctx := context.Background()
	active := newFake(minJournal, 0)
	j, err := OpenJournal(newFake(minJournal, 0), active)
	must(t, err)
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s, 0x33, 0, BlockSize)
	active.failWrite = func(int64, int) error { return errInjected }
	wantErr(t, "the failover", s.Stop(ctx, true), errInjected)
	active.failWrite = nil
	wantErr(t, "another try", s.Commit(ctx), errInjected)
	want(t, "what the guest sees", s, 0x33, 0, BlockSize)
	want(t, "the disk", disk, 0x11, 0, testSize)
}
