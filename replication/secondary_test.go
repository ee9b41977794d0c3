package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	testSize = 1 << 20
	half     = testSize / 2
)

// newSecondary returns a started secondary over a disk full of 0x11.
func newSecondary(t *testing.T, cfg SecondaryConfig) (*Secondary, *fakeDisk) {
	t.Helper()
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, cfg)
	must(t, err)
	must(t, s.Start(context.Background()))
	return s, disk
}

// TestSecondary has the cases of QEMU's tests/unit/test-replication.c by
// their names. Where that expects the primary's writes since the checkpoint
// to survive a failover (its read helper accepts any data up to the pattern,
// so it does not notice that they do not), the truth is expected here.
func TestSecondary(t *testing.T) {
	ctx := context.Background()

	t.Run("read", func(t *testing.T) {
		s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
		must(t, err)
		_, err = s.ReadAt(make([]byte, testSize), 0)
		wantErr(t, "no reads before the start", err, ErrNotRunning)
	})

	t.Run("write", func(t *testing.T) {
		s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{})
		must(t, err)
		_, err = s.WriteAt(make([]byte, testSize), 0)
		wantErr(t, "no writes before the start", err, ErrNotRunning)
	})

	t.Run("start", func(t *testing.T) {
		s, _ := newSecondary(t, SecondaryConfig{})
		want(t, "the disk as it was", s, 0x11, 0, testSize)
		write(t, s.Export(), 0x22, half, half)
		want(t, "the pre-image of what the primary wrote", s, 0x11, half, half)
		write(t, s, 0x33, 0, half)
		want(t, "its own write", s, 0x33, 0, half)
		must(t, s.Stop(ctx, true))
	})

	// stopped is the situation after secondary/stop.
	stopped := func(t *testing.T) (*Secondary, *fakeDisk) {
		s, disk := newSecondary(t, SecondaryConfig{})
		write(t, s.Export(), 0x22, half, half)
		write(t, s, 0x11, half, half)
		write(t, s, 0x33, 0, half)
		must(t, s.Stop(ctx, true))
		return s, disk
	}
	t.Run("stop", func(t *testing.T) {
		s, disk := stopped(t)
		for _, d := range []Disk{s, disk} {
			want(t, "its own write survives", d, 0x33, 0, half)
			want(t, "the primary's write since the checkpoint is undone", d, 0x11, half, half)
		}
	})

	t.Run("continuous_replication", func(t *testing.T) {
		s, disk := stopped(t)
		must(t, s.Start(ctx))
		must(t, s.Checkpoint(ctx, 1))
		must(t, s.Stop(ctx, true))
		for _, d := range []Disk{s, disk} {
			want(t, "a promoted disk is left alone", d, 0x33, 0, half)
			want(t, "a promoted disk is left alone", d, 0x11, half, half)
		}
	})

	t.Run("do_checkpoint", func(t *testing.T) {
		s, _ := newSecondary(t, SecondaryConfig{})
		write(t, s.Export(), 0x22, half, half)
		write(t, s, 0x11, half, half)
		must(t, s.Checkpoint(ctx, 1))
		want(t, "the primary's disk", s, 0x22, half, half)
		must(t, s.Stop(ctx, true))
	})

	t.Run("get_error_all", func(t *testing.T) {
		s, _ := newSecondary(t, SecondaryConfig{})
		must(t, Group{s}.Err())
		must(t, s.Stop(ctx, true))
	})
}

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

func TestFailoverUndoesThePrimarysWrites(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, testSize)
	must(t, s.Stop(context.Background(), true))
	want(t, "the last checkpoint", disk, 0x11, 0, testSize)
}

func TestFirstPreImageWinsUntilTheCheckpoint(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s.Export(), 0x22, 0, BlockSize)
	write(t, s.Export(), 0x44, 0, BlockSize)
	want(t, "the first pre-image", s, 0x11, 0, BlockSize)
	write(t, s, 0x33, 0, BlockSize)
	write(t, s.Export(), 0x55, 0, BlockSize)
	want(t, "its own write", s, 0x33, 0, BlockSize)
	want(t, "the primary's last write", disk, 0x55, 0, BlockSize)
	must(t, s.Checkpoint(context.Background(), 1))
	want(t, "the primary's last write", s, 0x55, 0, BlockSize)
}

func TestPartsOfBlocksKeepTheirNeighbours(t *testing.T) {
	for _, at := range []int64{1024, 1000, BlockSize - 100, 0} {
		for _, n := range []int64{512, 100, 3 * BlockSize} {
			s, disk := newSecondary(t, SecondaryConfig{})
			write(t, s.Export(), 0x22, at, n)
			want(t, "the guest sees the old block", s, 0x11, 0, 8*BlockSize)
			write(t, s, 0x33, at+n, n)
			must(t, s.WriteZeroes(at+2*n, 100))
			check := func(d Disk) {
				t.Helper()
				want(t, "untouched", d, 0x11, 0, at+n)
				want(t, "own write", d, 0x33, at+n, n)
				want(t, "zeroed", d, 0, at+2*n, 100)
				want(t, "untouched", d, 0x11, at+2*n+100, BlockSize)
			}
			check(s)
			must(t, s.Stop(context.Background(), true))
			check(disk)
		}
	}
}

func TestDiskThatEndsInsideABlock(t *testing.T) {
	disk := newFake(BlockSize+3*SectorSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	must(t, s.Start(context.Background()))
	write(t, s.Export(), 0x22, 0, disk.Size())
	want(t, "pre-images to the last sector", s, 0x11, 0, disk.Size())
	write(t, s, 0x33, disk.Size()-1, 1)
	must(t, s.Stop(context.Background(), true))
	want(t, "the checkpoint", disk, 0x11, 0, disk.Size()-1)
	want(t, "own write", disk, 0x33, disk.Size()-1, 1)
}

func TestStartTwiceIsAnErrorAndStartAfterDoneIsNot(t *testing.T) {
	ctx := context.Background()
	s, _ := newSecondary(t, SecondaryConfig{})
	wantErr(t, "second start", s.Start(ctx), ErrRunning)
	must(t, s.Stop(ctx, true))
	must(t, s.Start(ctx))
	must(t, s.Checkpoint(ctx, 3))
	must(t, s.Stop(ctx, false))
	must(t, s.Err())
	if s.State() != Done {
		t.Errorf("state %v", s.State())
	}
}

func TestBeforeTheStartThereIsNothingToStopOrCheckpoint(t *testing.T) {
	ctx := context.Background()
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "checkpoint", s.Checkpoint(ctx, 1), ErrNotRunning)
	wantErr(t, "stop", s.Stop(ctx, true), ErrNotRunning)
	s, err = NewSecondary(newFake(testSize, 0), SecondaryConfig{})
	must(t, err)
	wantErr(t, "stop", s.Stop(ctx, false), ErrNotRunning)
	wantErr(t, "commit", s.Commit(ctx), ErrNotRunning)
	wantErr(t, "err", s.Err(), ErrNotRunning)
}

func TestSizesOfNoUseAreRefused(t *testing.T) {
	for _, size := range []int{0, 100, SectorSize + 1} {
		_, err := NewSecondary(newFake(size, 0), SecondaryConfig{})
		wantErr(t, "size", err, ErrSize)
	}
}

func TestAccessOutsideTheDiskIsRefused(t *testing.T) {
	s, _ := newSecondary(t, SecondaryConfig{})
	for _, d := range []Disk{s, s.Export()} {
		for _, off := range []int64{-1, testSize - 1, testSize + 1, 1<<63 - 1} {
			_, err := d.ReadAt(make([]byte, 2), off)
			wantErr(t, "read", err, ErrRange)
			_, err = d.WriteAt(make([]byte, 2), off)
			wantErr(t, "write", err, ErrRange)
			wantErr(t, "zero", d.(ZeroWriter).WriteZeroes(off, 2), ErrRange)
		}
	}
}

func TestStartThatFailsMayBeRepeated(t *testing.T) {
	ctx := context.Background()
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "start", s.Start(ctx), errInjected)
	if s.State() != None {
		t.Fatalf("state %v after a start that failed", s.State())
	}
	disk.failSync = nil
	must(t, s.Start(ctx))
}

func TestExportFillsTheDiskBeforeTheStart(t *testing.T) {
	ctx := context.Background()
	disk := newFake(testSize, 0)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	write(t, s.Export(), 0x77, 0, testSize)
	must(t, s.Export().Sync())
	must(t, s.Start(ctx))
	want(t, "what was copied", s, 0x77, 0, testSize)
}

func TestPreImageThatCannotBeSavedFailsTheWrite(t *testing.T) {
	var told error
	s, disk := newSecondary(t, SecondaryConfig{HiddenBytes: 4 * BlockSize, OnError: func(err error) { told = err }})
	_, err := s.Export().WriteAt(make([]byte, 8*BlockSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "the disk is untouched", disk, 0x11, 0, testSize)
	wantErr(t, "it sticks", s.Err(), ErrFull)
	wantErr(t, "it is told", told, ErrFull)
	wantErr(t, "no checkpoint may bless it", s.Checkpoint(context.Background(), 1), ErrFull)
}

func TestReadErrorOfThePreImageFailsTheWrite(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	disk.failRead = func(int64, int) error { return errInjected }
	_, err := s.Export().WriteAt(make([]byte, BlockSize), 0)
	wantErr(t, "write", err, errInjected)
	disk.failRead = nil
	want(t, "the disk is untouched", disk, 0x11, 0, testSize)
	wantErr(t, "it sticks", s.Err(), errInjected)
}

func TestWriteErrorOfTheSecondaryDiskSticks(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	disk.failWrite = func(int64, int) error { return errInjected }
	_, err := s.Export().WriteAt(make([]byte, BlockSize), 0)
	wantErr(t, "write", err, errInjected)
	disk.failWrite = nil
	wantErr(t, "it sticks", s.Err(), errInjected)
	must(t, s.Stop(context.Background(), true))
	must(t, s.Err())
}

func TestActiveOverlayFullIsTheGuestsErrorAlone(t *testing.T) {
	asked := 0
	s, _ := newSecondary(t, SecondaryConfig{ActiveBytes: 8 * BlockSize, RequestCheckpoint: func() { asked++ }})
	write(t, s, 0x33, 0, BlockSize)
	if asked != 0 {
		t.Error("a checkpoint was requested for little")
	}
	write(t, s, 0x33, BlockSize, BlockSize)
	write(t, s, 0x33, 2*BlockSize, BlockSize)
	if asked != 1 {
		t.Errorf("%d requests for a checkpoint when half full, want one", asked)
	}
	_, err := s.WriteAt(bytes.Repeat([]byte{0x44}, 10*BlockSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "nothing was half written", s, 0x33, 0, 3*BlockSize)
	must(t, s.Err())
	must(t, s.Checkpoint(context.Background(), 1))
	write(t, s, 0x33, 0, 6*BlockSize)
	if asked != 2 {
		t.Errorf("%d requests after another epoch", asked)
	}
}

func TestZeroesTakeNoRoomButInTheMap(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{ActiveBytes: 8 * BlockSize})
	must(t, s.WriteZeroes(0, half))
	must(t, s.Trim(half, half))
	want(t, "zeroes", s, 0, 0, testSize)
	must(t, s.Stop(context.Background(), true))
	want(t, "zeroes", disk, 0, 0, testSize)
}

func TestTrimAndZeroesFromThePrimarySaveThePreImage(t *testing.T) {
	disk := newZeroingFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	must(t, s.Start(context.Background()))
	x := s.Export()
	must(t, x.(ZeroWriter).WriteZeroes(0, 3*BlockSize))
	must(t, x.(Trimmer).Trim(5*BlockSize, BlockSize))
	want(t, "zeroed", disk, 0, 0, 3*BlockSize)
	want(t, "trimmed", disk, 0, 5*BlockSize, BlockSize)
	want(t, "pre-images", s, 0x11, 0, testSize)
	must(t, s.Checkpoint(context.Background(), 1))
	want(t, "zeroed", s, 0, 0, 3*BlockSize)
}

// zeroingFake is a fakeDisk that has the optional methods.
type zeroingFake struct{ *fakeDisk }

func newZeroingFake(size int, fill byte) zeroingFake { return zeroingFake{newFake(size, fill)} }

func (d zeroingFake) WriteZeroes(off, n int64) error {
	d.zeroed++
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func (d zeroingFake) Trim(off, n int64) error { return d.WriteZeroes(off, n) }

func TestOnceStoppedThePrimaryIsRefused(t *testing.T) {
	ctx := context.Background()
	for _, failover := range []bool{true, false} {
		s, _ := newSecondary(t, SecondaryConfig{})
		x := s.Export()
		must(t, s.Stop(ctx, failover))
		_, err := x.WriteAt(make([]byte, 512), 0)
		wantErr(t, "write", err, ErrGated)
		_, err = x.ReadAt(make([]byte, 512), 0)
		wantErr(t, "read", err, ErrGated)
		wantErr(t, "zero", x.(ZeroWriter).WriteZeroes(0, 512), ErrGated)
		wantErr(t, "sync", x.Sync(), ErrGated)
		write(t, s, 0x33, 0, 512) // the guest goes on
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

func TestEpochsDoNotGoBack(t *testing.T) {
	ctx := context.Background()
	s, _ := newSecondary(t, SecondaryConfig{})
	must(t, s.Checkpoint(ctx, 5))
	wantErr(t, "an earlier epoch", s.Checkpoint(ctx, 4), ErrEpoch)
	if s.Epoch() != 5 {
		t.Errorf("epoch %d", s.Epoch())
	}
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

func TestGuestAndPrimaryAtTheSameTime(t *testing.T) {
	ctx := context.Background()
	s, _ := newSecondary(t, SecondaryConfig{})
	x := s.Export()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var writes atomic.Int64
	for i := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				off := rng.Int64N(16) * 1024
				if _, err := x.WriteAt(bytes.Repeat([]byte{0x22}, 1024+rng.IntN(8192)), off); err != nil && !errors.Is(err, ErrGated) {
					t.Errorf("primary: %v", err)
					return
				}
				writes.Add(1)
			}
		})
	}
	p := make([]byte, 8*BlockSize)
	for writes.Load() < 2000 {
		if _, err := s.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexByte(p, 0x22); i >= 0 {
			t.Fatalf("the guest sees the primary's write at %d", i)
		}
	}
	close(stop)
	wg.Wait()
	must(t, s.Checkpoint(ctx, 1))
	if bytes.IndexByte(read(t, s, 0, 8*BlockSize), 0x22) < 0 {
		t.Error("the checkpoint does not show the primary's writes")
	}
}

func TestGuestIOAllocatesNothing(t *testing.T) {
	s, _ := newSecondary(t, SecondaryConfig{})
	x := s.Export()
	p := make([]byte, BlockSize)
	write(t, s, 1, 0, half)
	write(t, x, 2, half, half)
	i := int64(0)
	if n := testing.AllocsPerRun(100, func() {
		off := i % 8 * BlockSize
		i++
		s.ReadAt(p, off)
		s.WriteAt(p, off)
		s.ReadAt(p, half+off)
	}); n != 0 {
		t.Errorf("%v allocations for a read and a write", n)
	}
}
