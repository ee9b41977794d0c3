package replication

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
)

// cacheDisk is a fakeDisk whose writes and syncs can be made to wait.
type cacheDisk struct {
	*fakeDisk
	beforeWrite, beforeSync func()
	fua                     error
}

func (d *cacheDisk) WriteAt(p []byte, off int64) (int, error) {
	if f := d.beforeWrite; f != nil {
		f()
	}
	return d.fakeDisk.WriteAt(p, off)
}

func (d *cacheDisk) Sync() error {
	err := d.fakeDisk.Sync()
	if f := d.beforeSync; f != nil {
		f()
	}
	return err
}

// A sync that overtakes a write does not count for it.
func TestFlushCoversEveryWriteThatWasAnsweredBeforeIt(t *testing.T) {
	for name, sides := range map[string]func(*testing.T, Disk) Disk{
		"the primary's guest": func(t *testing.T, d Disk) Disk {
			p, err := NewPrimary(d, PrimaryConfig{})
			must(t, err)
			return p
		},
		"the export": func(t *testing.T, d Disk) Disk {
			s, err := NewSecondary(d, SecondaryConfig{})
			must(t, err)
			must(t, s.Start(t.Context()))
			return s.Export()
		},
		"the promoted guest": func(t *testing.T, d Disk) Disk {
			s, err := NewSecondary(d, SecondaryConfig{})
			must(t, err)
			must(t, s.Start(t.Context()))
			must(t, s.Stop(t.Context(), true))
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := newPoweredFake(make([]byte, testSize))
				d := &cacheDisk{fakeDisk: disk}
				side := sides(t, d)
				release := make(chan struct{})
				d.beforeWrite = func() { <-release }
				var wg sync.WaitGroup
				wg.Go(func() { write(t, side, 7, 0, BlockSize) })
				synctest.Wait()
				must(t, side.Sync())
				close(release)
				wg.Wait()
				must(t, side.Sync())
				if disk.stableByte(0) != 7 {
					t.Error("a write and then a flush were answered, and the write is not stable")
				}
			})
		})
	}
}

func (d *fakeDisk) stableByte(off int64) byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stable(off, 1)[0]
}

func TestFlushesThatComeDuringASyncShareTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newPoweredFake(make([]byte, testSize))
		d := &cacheDisk{fakeDisk: disk}
		s := newStableDisk(d, "disk")
		release := make(chan struct{})
		d.beforeSync = func() { <-release }
		var wg sync.WaitGroup
		wg.Go(func() { must(t, s.Sync()) })
		synctest.Wait()
		for i := range byte(20) {
			wg.Go(func() {
				write(t, s, 7, int64(i)*SectorSize, SectorSize)
				must(t, s.Sync())
				if disk.stableByte(int64(i)*SectorSize) != 7 {
					t.Errorf("the flush of write %d was answered by a sync that had begun before it", i)
				}
			})
		}
		synctest.Wait()
		close(release)
		wg.Wait()
		if disk.syncs != 2 {
			t.Errorf("%d syncs for a flush and 20 that came meanwhile, want 2", disk.syncs)
		}
		must(t, s.Sync())
		if disk.syncs != 2 {
			t.Error("nothing was written, and another sync was made")
		}
	})
}

func TestFirstFlushIsAlwaysSent(t *testing.T) {
	disk := newFake(testSize, 0)
	must(t, newStableDisk(disk, "disk").Sync())
	if disk.syncs != 1 {
		t.Error("what others wrote before was taken for stable")
	}
	local, far := newFake(testSize, 9), newFake(testSize, 9)
	p, err := NewPrimary(local, PrimaryConfig{InSync: true})
	must(t, err)
	must(t, p.Attach(DiskRemote(far)))
	must(t, p.Mark(t.Context(), 0))
	if far.syncs != 1 {
		t.Error("a mark promised that the secondary's disk is stable, without a flush")
	}
}

func TestAFailedSyncIsFinal(t *testing.T) {
	disk := newPoweredFake(make([]byte, testSize))
	s := newStableDisk(disk, "disk")
	write(t, s, 7, 0, SectorSize)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "sync", s.Sync(), errInjected)
	disk.failSync = nil
	for range 2 {
		write(t, s, 8, SectorSize, SectorSize)
		var lost *SyncError
		if err := s.Sync(); !errors.As(err, &lost) || lost.Disk != "disk" {
			t.Errorf("a sync after one that failed: %v", err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { s.Sync() }); n != 0 {
		t.Errorf("%v allocations for a sync that is refused", n)
	}
}

func (d *cacheDisk) WriteFUA(p []byte, off int64) error {
	if d.fua != nil {
		return d.fua
	}
	if err := writeFull(d.fakeDisk, p, off); err != nil {
		return err
	}
	return d.fakeDisk.Sync()
}

// An operating system reports data that it has lost to one caller only, the first that syncs.
func TestAWriteThroughThatFailsIsAFailedSync(t *testing.T) {
	d := &cacheDisk{fakeDisk: newFake(testSize, 0), fua: errInjected}
	s := newStableDisk(d, "disk")
	wantErr(t, "write", s.WriteFUA(make([]byte, SectorSize), 0), errInjected)
	d.fua = nil
	wantErr(t, "sync", s.Sync(), errInjected)
	wantErr(t, "write", s.WriteFUA(make([]byte, SectorSize), 0), errInjected)
}

func TestSyncingWhatIsWrittenAllocatesNothing(t *testing.T) {
	s := newStableDisk(newFake(testSize, 0), "disk")
	p := make([]byte, SectorSize)
	if n := testing.AllocsPerRun(100, func() { s.WriteAt(p, 0); s.Sync() }); n != 0 {
		t.Errorf("%v allocations for a write and a flush", n)
	}
}

func TestPrimaryWhoseDiskLostDataMakesNoCheckpoint(t *testing.T) {
	ctx := context.Background()
	p, local, _, _ := newPrimary(t, ForwarderConfig{})
	bus, failed := heard[event.DiskFailed]()
	p.cfg.Events, p.cfg.Name = bus, "d"
	write(t, p, 0x22, 0, SectorSize)
	local.failSync = func() error { return errInjected }
	wantErr(t, "flush", p.Sync(), errInjected)
	local.failSync = nil
	wantErr(t, "the next flush", p.Sync(), errInjected)
	wantErr(t, "mark", p.Mark(ctx, 1), errInjected)
	wantErr(t, "checkpoint", p.Checkpoint(ctx, 1), ErrBroken)
	want(t, "the guest goes on reading", p, 0x22, 0, SectorSize)
	write(t, p, 0x33, 0, SectorSize)
	must(t, p.Stop(ctx, true))
	p.cfg.Overwrite = true
	wantErr(t, "attach anew", p.Attach(DiskRemote(newFake(testSize, 0))), errInjected)
	if len(*failed) != 1 || (*failed)[0].Mode != event.ModePrimary || (*failed)[0].Disk != "d" {
		t.Errorf("heard %+v, want once that the primary's disk d has failed", *failed)
	}
}

func TestSecondaryWhoseDiskLostDataSaysSoOnce(t *testing.T) {
	ctx := context.Background()
	bus, failed := heard[event.DiskFailed]()
	s, disk := newSecondary(t, SecondaryConfig{Name: "d", Events: bus})
	must(t, s.Stop(ctx, true))
	write(t, s, 0x22, 0, SectorSize)
	disk.failSync = func() error { return errInjected }
	wantErr(t, "flush of the promoted guest", s.Sync(), errInjected)
	disk.failSync = nil
	wantErr(t, "the next flush", s.Sync(), errInjected)
	if len(*failed) != 1 || (*failed)[0].Mode != event.ModeSecondary || (*failed)[0].Disk != "d" {
		t.Errorf("heard %+v, want once that the secondary's disk d has failed", *failed)
	}
}

func TestAFileThatCouldNotSyncIsNotTrustedAgain(t *testing.T) {
	d, err := CreateFile(filepath.Join(t.TempDir(), "image"), testSize)
	must(t, err)
	defer d.Close()
	r, w, err := os.Pipe() // which cannot be synced
	must(t, err)
	defer r.Close()
	defer w.Close()
	good := d.f
	d.f = w
	first := d.Sync()
	d.f = good
	var lost *SyncError
	if !errors.As(first, &lost) || d.Sync() != first {
		t.Errorf("first %v, then %v, want the same *SyncError", first, d.Sync())
	}
}

// countedSyncs is a disk that can do all, and counts its syncs.
type countedSyncs struct {
	*fakeDisk
	syncs int
}

func (d *countedSyncs) Sync() error { d.syncs++; return nil }

func (d *countedSyncs) Trim(off, n int64) error { return WriteZeroes(d.fakeDisk, off, n) }

func (d *countedSyncs) WriteZeroes(off, n int64) error { return WriteZeroes(d.fakeDisk, off, n) }

// A change of any kind is volatile until a sync, a trim too: what was there before would come back.
func TestAFlushAfterAnyKindOfChangeReachesTheDisk(t *testing.T) {
	d := &countedSyncs{fakeDisk: newFake(testSize, 0x11)}
	s := newStableDisk(d, "d")
	for name, change := range map[string]func() error{
		"a write": func() error { _, err := s.WriteAt(make([]byte, SectorSize), 0); return err },
		"zeroes":  func() error { return s.WriteZeroes(0, SectorSize) },
		"a trim": func() error {
			able, err := s.trim(0, SectorSize)
			if !able {
				t.Error("the disk cannot trim")
			}
			return err
		},
		"a write by somebody else": func() error { s.wrote(); return nil },
	} {
		must(t, s.Sync())
		before := d.syncs
		must(t, change())
		must(t, s.Sync())
		must(t, s.Sync())
		if d.syncs != before+1 {
			t.Errorf("%s and two flushes: %d syncs, want 1", name, d.syncs-before)
		}
	}
}
