package replication

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/event"
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

// A server may say any size, and memory is taken by it.
func TestDisksThatNoMemoryIsEnoughForAreRefused(t *testing.T) {
	for _, size := range []int64{maxSize + SectorSize, 1 << 62, 1<<63 - SectorSize} {
		d := nullDisk(size)
		_, err := NewSecondary(d, SecondaryConfig{})
		wantErr(t, "secondary", err, ErrSize)
		_, err = NewPrimary(d, PrimaryConfig{})
		wantErr(t, "primary", err, ErrSize)
		wantErr(t, "growth", mayGrow(1<<20, size), ErrSize)
		_, err = CreateFile(filepath.Join(t.TempDir(), "image"), size)
		wantErr(t, "image", err, ErrSize)
	}
	must(t, checkSize("a disk", maxSize))
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

func TestStartIsFinalWhereTheDiskCouldNotBeMadeStable(t *testing.T) {
	ctx := context.Background()
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(disk, SecondaryConfig{})
	must(t, err)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "start", s.Start(ctx), errInjected)
	if s.State() != None {
		t.Fatalf("state %v after a start that failed", s.State())
	}
	disk.failSync = nil // the next would succeed, whatever the first has lost
	wantErr(t, "start again", s.Start(ctx), errInjected)
}

func TestActiveOverlayFullIsTheGuestsErrorAlone(t *testing.T) {
	bus, half := heard[event.DiskOverlayHalfFull]()
	s, _ := newSecondary(t, SecondaryConfig{Name: "d", ActiveBytes: 8 * BlockSize, Events: bus})
	write(t, s, 0x33, 0, BlockSize)
	if len(*half) != 0 {
		t.Error("a checkpoint was asked for with little in the overlay")
	}
	write(t, s, 0x33, BlockSize, BlockSize)
	write(t, s, 0x33, 2*BlockSize, BlockSize)
	once := []event.DiskOverlayHalfFull{{Disk: "d", Overlay: "active", Bytes: 4 * BlockSize, Bound: 8 * BlockSize}}
	if !slices.Equal(*half, once) {
		t.Errorf("heard %+v, want %+v", *half, once)
	}
	_, err := s.WriteAt(bytes.Repeat([]byte{0x44}, 10*BlockSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "nothing was half written", s, 0x33, 0, 3*BlockSize)
	must(t, s.Err())
	must(t, s.Checkpoint(context.Background(), 1))
	write(t, s, 0x33, 0, 6*BlockSize)
	if len(*half) != 2 || (*half)[1].Epoch != 1 {
		t.Errorf("heard %+v, want another in the next epoch", *half)
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
