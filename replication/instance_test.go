package replication

import (
	"context"
	"fmt"
	"testing"
)

// resyncRig returns a pair that had a checkpoint, parted, and came together again: what the guest wrote
// meanwhile has been copied, and no checkpoint has it yet.
func resyncRig(t *testing.T, journal bool) (p *Primary, s *Secondary, local, disk *fakeDisk) {
	t.Helper()
	ctx := context.Background()
	local, disk = newFake(testSize, 0x11), newFake(testSize, 0)
	p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
	must(t, err)
	cfg := SecondaryConfig{}
	if journal {
		cfg.Journal, err = OpenJournal(newFake(4*testSize, 0), newFake(minJournal, 0))
		must(t, err)
	}
	s, err = NewSecondary(disk, cfg)
	must(t, err)
	protectFirst(t, p, s)
	write(t, p, 0x22, 0, SectorSize)
	checkpointBoth(t, p, s, 1)
	must(t, p.Stop(ctx, true))
	write(t, p, 0x33, 0, SectorSize)
	must(t, joinOver(p, s))
	must(t, p.Synchronise(ctx, SyncConfig{}))
	want(t, "what is copied", disk, 0x33, 0, SectorSize)
	return p, s, local, disk
}

// A secondary that goes back to its last checkpoint, in one and the same process, undoes what
// was copied to it since.
func TestWhatASecondaryHasTakenBackIsCopiedAgain(t *testing.T) {
	ctx := context.Background()
	for _, journal := range []bool{false, true} {
		for _, c := range []struct {
			name string
			back func(p *Primary, s *Secondary, disk *fakeDisk)
		}{
			{"after an error", func(p *Primary, s *Secondary, disk *fakeDisk) {
				disk.failRead = func(int64, int) error { return errInjected }
				write(t, p, 0x44, 3*ChunkSize, SectorSize)
				p.Sync()
				wantErr(t, "the secondary", s.Err(), errInjected)
				disk.failRead = nil
			}},
			{"by an order", func(_ *Primary, s *Secondary, _ *fakeDisk) { must(t, s.Stop(ctx, false)) }},
		} {
			name := fmt.Sprintf("%s, with a journal %v", c.name, journal)
			p, s, local, disk := resyncRig(t, journal)
			c.back(p, s, disk)
			must(t, joinOver(p, s))
			want(t, name+": it was taken back", disk, 0x22, 0, SectorSize)
			must(t, p.Synchronise(ctx, SyncConfig{}))
			must(t, p.Mark(ctx, 0))
			wantBytes(t, name, disk.data, local.data, 0)
		}
	}
}

// The copy goes back between the two requests of a primary that is being attached.
func TestAPrimaryThatKnowsWhatHoldsNoMoreIsRefusedOnce(t *testing.T) {
	_, s, _, disk := resyncRig(t, false)
	told := s.Identity()
	of := told
	of.Overwrite = true
	disk.failRead = func(int64, int) error { return errInjected }
	s.Export().WriteAt(make([]byte, SectorSize), 3*ChunkSize)
	disk.failRead = nil
	wantErr(t, "it was told of another", s.Adopt(of), ErrNotRunning)
	want(t, "it was taken back all the same", disk, 0x22, 0, SectorSize)
	if of.instance = s.Identity().instance; of.instance == told.instance {
		t.Fatal("the copy has the same name as before")
	}
	must(t, s.Adopt(of))
}

// Each of the two copies then has a write that the other lacks, and neither is the newer one.
func TestAFailoverFromTheCheckpointBeforeAPrimaryCameBackHasDiverged(t *testing.T) {
	ctx := context.Background()
	for _, journal := range []bool{false, true} {
		p, s, local, disk := resyncRig(t, journal)
		must(t, p.Detach())
		must(t, s.Stop(ctx, true))
		want(t, "the primary's guest has", local, 0x33, 0, SectorSize)
		want(t, "the secondary's has", disk, 0x22, 0, SectorSize)
		_, err := Newest(p.Identity(), s.Identity())
		wantErr(t, fmt.Sprintf("with a journal %v", journal), err, ErrDiverged)
	}
}

// A checkpoint that is made after the primary has come back is of its generation.
func TestAFailoverFromACheckpointAfterAPrimaryCameBackIsNewer(t *testing.T) {
	ctx := context.Background()
	for _, journal := range []bool{false, true} {
		p, s, _, disk := resyncRig(t, journal)
		must(t, p.Mark(ctx, 0))
		must(t, s.Checkpoint(ctx, s.Epoch()+1))
		must(t, p.Detach())
		must(t, s.Stop(ctx, true))
		want(t, "the secondary's guest has", disk, 0x33, 0, SectorSize)
		n, err := Newest(p.Identity(), s.Identity())
		if n != 1 || err != nil {
			t.Errorf("with a journal %v: %d, %v; want the secondary", journal, n, err)
		}
	}
}

// Each time that a primary comes back begins a generation, of which a copy remembers a few.
func TestAPrimaryMayComeBackToARunAnyNumberOfTimes(t *testing.T) {
	ctx := context.Background()
	for _, journal := range []bool{false, true} {
		p, s, local, disk := resyncRig(t, journal)
		p.cfg.Overwrite = false
		for i := range 3 * historyLength {
			epoch := s.Epoch() + 1
			checkpointBoth(t, p, s, epoch)
			must(t, p.Start(ctx))
			checkpointBoth(t, p, s, epoch+1)
			must(t, p.Stop(ctx, true))
			write(t, p, byte(i), 0, SectorSize)
			if err := joinOver(p, s); err != nil {
				t.Fatalf("with a journal %v, after %d times: %v", journal, i, err)
			}
			must(t, p.Synchronise(ctx, SyncConfig{}))
		}
		wantBytes(t, "the copy", disk.data, local.data, 0)

		// An older copy of the guest's disk is not taken for it.
		old := p.Identity()
		old.Generation, old.History = old.History[1], [historyLength]Generation(append(old.History[2:], Generation{}, Generation{}))
		wantErr(t, fmt.Sprintf("a backup of the primary, with a journal %v", journal), s.Adopt(old), ErrOutdated)

		must(t, s.Stop(ctx, false))
		if i := s.Identity(); i.State != CopyClean || i.Generation != p.Identity().History[0] {
			t.Errorf("with a journal %v: after a stop the copy is %v, the primary's %v", journal, i, p.Identity())
		}
	}
}
