package replication

import (
	"context"
	"testing"
)

// A stop that its context ends has taken a part of the disk back to the last checkpoint. A primary that comes back then is told
// so, as by a stop that was carried out, and copies what the disk lacks; and no checkpoint is made of what is half taken back.
func TestAPrimaryThatComesBackAfterAStopThatWasGivenUpCopiesWhatWasTakenBack(t *testing.T) {
	ctx := context.Background()
	const size = (leafBlocks + 1) * BlockSize
	for _, kind := range []string{"in memory", "journal", "kept in a journal"} {
		journal, kept := kind != "in memory", kind == "kept in a journal"
		for _, next := range []string{"comes back", "checkpoint", "prepare", "start", "stop", "failover"} {
			if kept && next == "failover" {
				continue // there is no guest
			}
			if testing.Short() && kind == "journal" && next != "failover" {
				continue // as with one that keeps the checkpoint
			}
			local, disk := newFake(size, 0x11), newFake(size, 0)
			p, err := NewPrimary(local, PrimaryConfig{Overwrite: true})
			must(t, err)
			cfg := SecondaryConfig{}
			if journal {
				cfg.Journal, err = OpenJournal(newFake(4*size, 0), newFake(minJournal, 0))
				must(t, err)
			}
			s, err := NewSecondary(disk, cfg)
			must(t, err)
			protectFirst(t, p, s)
			checkpointBoth(t, p, s, 1)
			must(t, p.Stop(ctx, true))
			if kept {
				must(t, s.Stop(ctx, false))
			}
			write(t, p, 0x33, 0, size)
			must(t, joinOver(p, s))
			must(t, p.Synchronise(ctx, SyncConfig{}))
			must(t, p.Detach())

			ended, end := context.WithCancel(ctx)
			disk.failWrite = func(int64, int) error { end(); return nil }
			wantErr(t, "a stop that was given up", s.Stop(ended, false), context.Canceled)
			disk.failWrite = nil
			if !kept {
				want(t, "what the guest sees", s, 0x11, 0, size)
			}
			if got := read(t, disk, size-1, 1)[0]; got != 0x33 {
				t.Fatalf("the end of the disk is %#x: all of it was taken back", got)
			}
			switch next {
			case "stop":
				must(t, s.Stop(ctx, false))
				want(t, "the last checkpoint", disk, 0x11, 0, size)
			case "failover":
				must(t, s.Stop(ctx, true))
				want(t, "the last checkpoint", disk, 0x11, 0, size)
				continue
			case "checkpoint":
				if err := s.Checkpoint(ctx, 2); err == nil {
					t.Errorf("%s: a checkpoint is made of what is half taken back", kind)
				}
			case "prepare":
				if err := s.Prepare(ctx, 2); err == nil && !kept {
					t.Errorf("%s: a checkpoint is prepared of what is half taken back", kind)
				}
			case "start":
				if s.Start(ctx) == nil || (Group{s, s}).Start(ctx) == nil {
					t.Errorf("%s: what is half taken back is a start", kind)
				}
			}
			if _, err := s.Export().WriteAt(make([]byte, BlockSize), 0); err == nil {
				t.Errorf("%s, %s: the primary that is gone writes", kind, next)
			}
			protectFirst(t, p, s)
			checkpointBoth(t, p, s, 1)
			wantBytes(t, next, disk.data, local.data, 0)
		}
	}
}
