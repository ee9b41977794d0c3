package replication

import (
	"bytes"
	"context"
	"fmt"
	"testing"
)

// A Start may fail after its record has reached stable storage. The next process finds the disk of
// a checkpoint then, and so no primary may write it meanwhile. Each write and each sync of
// the two places fails once, in a first copy and in one of a disk that was one before.
func TestWhatAFailedStartHasRecordedStaysTrue(t *testing.T) {
	ctx := context.Background()
	for _, before := range []bool{false, true} {
		failures := 0
		for at := range 40 {
			disk, dev := newFake(testSize, 0), newFake(int(metadataHead+intentBytes(testSize)), 0)
			hidden, active := newFake(4*testSize, 0), newFake(minJournal, 0)
			boot := func() (*Secondary, error) {
				m, err := OpenMetadata(dev)
				must(t, err)
				kept := &keptDisk{disk, m}
				j, err := OpenJournal(hidden, active)
				must(t, err)
				if _, _, err := j.Recover(ctx, kept); err != nil {
					return nil, err
				}
				return NewSecondary(kept, SecondaryConfig{Journal: j, Overwrite: true})
			}
			s, err := boot()
			must(t, err)
			p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{Overwrite: true})
			must(t, err)
			var kept []byte // the last checkpoint
			if before {
				protectFirst(t, p, s)
				kept = bytes.Clone(disk.data)
				must(t, p.Stop(ctx, true))
				write(t, p, 0x22, 0, testSize)
				s, err = boot()
				must(t, err)
			}
			must(t, joinOver(p, s))
			must(t, p.Synchronise(ctx, SyncConfig{}))

			left := at
			fail := func() error {
				if left--; left == -1 {
					return errInjected
				}
				return nil
			}
			for _, d := range []*fakeDisk{dev, hidden, active} {
				d.failWrite = func(int64, int) error { return fail() }
				d.failSync = fail
			}
			if err := s.Start(ctx); err == nil {
				break // it has no more operations
			}
			failures++
			stood := bytes.Clone(disk.data)
			_, err = s.Export().WriteAt(bytes.Repeat([]byte{0x77}, BlockSize), BlockSize)
			for _, d := range []*fakeDisk{dev, hidden, active} {
				d.failWrite, d.failSync = nil, nil
			}
			now := bytes.Clone(disk.data)
			why := fmt.Sprintf("before %v, operation %d (the write after it: %v)", before, at, err)
			s, err = boot()
			if err != nil {
				t.Errorf("%s: %v", why, err)
				continue
			}
			if id := s.meta.Identity(); id.State == CopyClean && id.Disk != (ID{}) && !bytes.Equal(disk.data, stood) && !bytes.Equal(disk.data, kept) {
				t.Errorf("%s: the disk is %v, and is not what it was then, nor at the checkpoint before (written meanwhile: %v)", why, id, !bytes.Equal(now, stood))
			}
		}
		if failures < 2 {
			t.Errorf("before %v: %d failures of a start", before, failures)
		}
	}
}
