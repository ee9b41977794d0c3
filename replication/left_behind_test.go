package replication

import (
	"bytes"
	"context"
	"slices"
	"testing"
)

// What is sent in the place of two writes is as stable as either has to be.
func TestAWriteThatReplacesOneThatHasToBeStableIsStableToo(t *testing.T) {
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	seq, err := f.send(bytes.Repeat([]byte{2}, 4096), 0, 4096, true) // it waits for the first
	must(t, err)
	forward1(t, f, 3, 0, 4096)
	must(t, f.answered(context.Background(), seq))
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "fua"}) {
		t.Errorf("%q", log)
	}
	if b := r.disk.(*fakeDisk).data[0]; b != 3 {
		t.Errorf("the block has %d, want that of the last write", b)
	}
}

// A flush says nothing of the writes that were sent after it.
func TestAFlushThatIsUnderWayIsNotThatOfLaterWrites(t *testing.T) {
	ctx := context.Background()
	r := newFakeRemote(newFake(1<<20, 0), 1)
	f := startForwarder(t, r, ForwarderConfig{})
	forward1(t, f, 1, 0, 4096)
	must(t, f.answered(ctx, 1))
	f.mu.Lock()
	wait := f.startFlush(f.seq)
	f.mu.Unlock()
	forward1(t, f, 2, 8192, 4096)
	f.mu.Lock()
	err := wait(ctx)
	f.mu.Unlock()
	must(t, err)
	must(t, f.Sync())
	if log := r.takeLog(); !slices.Equal(log, []string{"write", "flush", "write", "flush"}) {
		t.Errorf("%q", log)
	}
}

// The length of a disk is no less to be made stable than what is written to it.
func TestADiskThatHasGrownIsSynced(t *testing.T) {
	ctx := context.Background()
	disk := newFake(testSize, 0)
	s, err := NewSecondary(growingFake{disk}, SecondaryConfig{})
	must(t, err)
	must(t, s.Start(ctx))
	must(t, s.Sync())
	before := disk.syncs
	must(t, s.Grow(ctx, 2*testSize))
	if disk.syncs == before {
		t.Error("nothing was synced")
	}
}

// A disk is not written as a primary's before its metadata says that its journal undoes nothing
// of it any more.
func TestADiskWhoseJournalCannotBeLeftIsNotWritten(t *testing.T) {
	ctx := context.Background()
	disk, dev := newPoweredFake(make([]byte, testSize)), newFake(metadataHead, 0)
	j, err := OpenJournal(newFake(minJournal, 0), newFake(minJournal, 0))
	must(t, err)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	must(t, s.Stop(ctx, false))
	p, err := NewPrimary(reopened(t, disk, dev), PrimaryConfig{})
	must(t, err)
	dev.failWrite = func(int64, int) error { return errInjected }
	for range 2 {
		_, err = p.WriteAt(bytes.Repeat([]byte{0x22}, SectorSize), 0)
		wantErr(t, "the guest's write", err, errInjected)
	}
	want(t, "the disk", disk, 0, 0, testSize)
}

// A checkpoint that was prepared, and is given up for a primary that comes back, is not the one
// to which a crash brings the disk.
func TestAPreparedCheckpointIsForgottenWhenAPrimaryComesBack(t *testing.T) {
	ctx := context.Background()
	p, s, _, _ := resyncRig(t, true)
	must(t, p.Mark(ctx, 2))
	must(t, s.Prepare(ctx, 2))
	j := s.cfg.Journal
	if j.super.prepared != 2 {
		t.Fatalf("%d is prepared, want 2", j.super.prepared)
	}
	must(t, p.Detach())
	must(t, joinOver(p, s))
	if j.super.prepared != 0 {
		t.Errorf("%d is still prepared", j.super.prepared)
	}
}
