package replication

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event"
)

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
	bus, broken := heard[event.DiskBroken]()
	s, disk := newSecondary(t, SecondaryConfig{Name: "d", HiddenBytes: 4 * BlockSize, Events: bus})
	_, err := s.Export().WriteAt(make([]byte, 8*BlockSize), 0)
	wantErr(t, "write", err, ErrFull)
	want(t, "the disk is untouched", disk, 0x11, 0, testSize)
	wantErr(t, "it sticks", s.Err(), ErrFull)
	wantErr(t, "it is one of the broken", s.Err(), ErrBroken)
	wantErr(t, "no checkpoint may bless it", s.Checkpoint(context.Background(), 1), ErrFull)
	e := event.DiskBroken{Mode: event.ModeSecondary, Disk: "d", Operation: "pre-image", Length: 8 * BlockSize}
	if len(*broken) == 1 {
		e.Error = (*broken)[0].Error
	}
	if len(*broken) != 1 || (*broken)[0] != e || !strings.Contains(e.Error, "overlay full") {
		t.Errorf("heard %+v, want %+v with the reason, once", *broken, e)
	}
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
		if failover {
			write(t, s, 0x33, 0, 512) // the guest goes on
		}
	}
}

// A primary that comes back takes the copy for that of the last checkpoint, and copies only what
// it has written since.
func TestOnceStoppedWithoutFailoverTheDiskStaysAtItsCheckpoint(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{})
	write(t, s, 0x22, 0, 512)
	must(t, s.Stop(ctx, false))
	before := bytes.Clone(disk.data)
	_, err := s.WriteAt(make([]byte, 512), 0)
	wantErr(t, "a write of the guest", err, ErrNotRunning)
	wantErr(t, "zeroes", s.WriteZeroes(0, 512), ErrNotRunning)
	wantErr(t, "a trim", s.Trim(0, 512), ErrNotRunning)
	wantBytes(t, "the last checkpoint", read(t, s, 0, testSize), before, 0)
	must(t, s.Start(ctx))
	write(t, s, 0x22, 0, 512) // of the next run
}

// Where the primary writes over a hole there is nothing to be saved but that it was one.
func TestNothingIsReadOfAHoleThatIsWritten(t *testing.T) {
	const size, data = 8 << 20, 1 << 20
	for name, journal := range map[string]bool{"in memory": false, "in a journal": true} {
		t.Run(name, func(t *testing.T) {
			disk := newFake(size, 0)
			copy(disk.data, bytes.Repeat([]byte{0x11}, data))
			cfg := SecondaryConfig{}
			if journal {
				var err error
				cfg.Journal, err = OpenJournal(newFake(2*size, 0), newFake(minJournal, 0))
				must(t, err)
			}
			s, err := NewSecondary(holed{disk, data}, cfg)
			must(t, err)
			must(t, s.Start(t.Context()))
			most := int64(0)
			disk.failRead = func(off int64, n int) error { most = max(most, off+int64(n)); return nil }
			write(t, s.Export(), 0x22, data/2, 4*data)
			if most > data {
				t.Errorf("the disk was read up to %d, want the %d bytes that it has", most, data)
			}
			want(t, "the last checkpoint", s, 0x11, data/2, data/2)
			want(t, "the last checkpoint", s, 0, data, 4*data)
			must(t, s.Stop(t.Context(), false))
			want(t, "the disk that went back", disk, 0x11, 0, data)
			want(t, "the disk that went back", disk, 0, data, size-data)
		})
	}
}
