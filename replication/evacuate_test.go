package replication

import (
	"context"
	"testing"
)

func TestAGuestIsBroughtAwayFromADiskThatFailed(t *testing.T) {
	ctx := context.Background()
	p, local, _, _ := newPrimaryWith(t, PrimaryConfig{InSync: true, Overwrite: true, Evacuate: true})
	write(t, p, 0x22, 0, SectorSize)
	local.failSync = func() error { return errInjected }
	wantErr(t, "flush", p.Sync(), errInjected)
	wantErr(t, "the disk", p.LocalErr(), errInjected)
	wantErr(t, "the mark of a run that was under way", p.Mark(ctx, 1), errInjected)
	wantErr(t, "its checkpoint", p.Checkpoint(ctx, 1), ErrBroken)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, ChunkSize, SectorSize)

	far := newFake(testSize, 0)
	must(t, p.Attach(DiskRemote(far)))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	must(t, p.Mark(ctx, 0))
	must(t, p.Start(ctx))
	must(t, p.Loaded(ctx, 0))
	write(t, p, 0x44, 2*ChunkSize, SectorSize)
	wantErr(t, "a flush of the guest's", p.Sync(), errInjected)
	syncs := far.syncs
	must(t, p.Mark(ctx, 1))
	must(t, p.Checkpoint(ctx, 1))
	if far.syncs == syncs {
		t.Error("a checkpoint whose disk is stable nowhere")
	}
	want(t, "written before the failure", far, 0x22, 0, SectorSize)
	want(t, "written after it", far, 0x33, ChunkSize, SectorSize)
	want(t, "written in step", far, 0x44, 2*ChunkSize, SectorSize)
	wantErr(t, "the disk", p.LocalErr(), errInjected)
}

// Where the local disk cannot be read, the secondary would get other contents: nothing is sent then.
func TestWhatAFailedDiskCannotReadGoesNowhere(t *testing.T) {
	ctx := context.Background()
	p, local, _, _ := newPrimaryWith(t, PrimaryConfig{InSync: true, Overwrite: true, Evacuate: true})
	local.failSync = func() error { return errInjected }
	wantErr(t, "flush", p.Sync(), errInjected)
	must(t, p.Stop(ctx, true))
	must(t, p.Attach(DiskRemote(newFake(testSize, 0))))
	local.failRead = func(int64, int) error { return errInjected }
	wantErr(t, "synchronise", p.Synchronise(ctx, SyncConfig{}), errInjected)
	wantErr(t, "mark", p.Mark(ctx, 0), ErrNotSynchronised)
}
