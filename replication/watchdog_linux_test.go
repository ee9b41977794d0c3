package replication

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// lateCall makes an image, in which by has a system call under way, as far as the descriptor is concerned, until release
// is closed. late waits for that.
func lateCall(t *testing.T, by func(*File, func() error) error) (f *File, name string, late *sync.WaitGroup, release chan struct{}) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "image")
	f, err := CreateFile(name, testSize)
	must(t, err)
	conn, err := f.f.SyscallConn()
	must(t, err)
	var begun chan struct{}
	late, release, begun = new(sync.WaitGroup), make(chan struct{}), make(chan struct{})
	late.Go(func() {
		by(f, func() error { return conn.Control(func(uintptr) { close(begun); <-release }) })
	})
	<-begun
	return f, name, late, release
}

// closesLocked closes an image. It stays locked until what is under way has returned, when release is closed.
func closesLocked(t *testing.T, f *File, name string, late *sync.WaitGroup, release chan struct{}) {
	t.Helper()
	must(t, f.Close())
	_, err := OpenFile(name)
	wantErr(t, "opening it anew while an operation is under way", err, ErrLocked)
	close(release)
	late.Wait()
	again, err := OpenFile(name)
	must(t, err)
	must(t, again.Close())
}

func TestAnImageStaysLockedUntilALateWriteHasReturned(t *testing.T) {
	f, name, late, release := lateCall(t, (*File).change)
	p, err := NewPrimary(f, PrimaryConfig{})
	must(t, err)
	p.local.abandon(&HungError{Mode: event.ModePrimary, Device: "disk", Op: "write"})
	_, err = f.WriteAt(make([]byte, SectorSize), 0)
	wantErr(t, "a write to an image that was given up", err, ErrHung)
	_, err = f.ReadAt(make([]byte, SectorSize), 0)
	wantErr(t, "a read", err, ErrHung)
	wantErr(t, "a flush", f.Sync(), ErrHung)
	wantErr(t, "a trim", f.Trim(0, BlockSize), ErrHung)
	wantErr(t, "zeroing", f.WriteZeroes(0, BlockSize), ErrHung)
	wantErr(t, "asking for holes", f.Extents(0, testSize, func(int64, uint32) bool { return true }), ErrHung)
	wantErr(t, "growing", f.Grow(2*testSize), ErrHung)
	if st, err := os.Stat(name); err != nil || st.Size() != testSize {
		t.Errorf("it has %d bytes: %v", st.Size(), err)
	}
	wantErr(t, "CheckWrites", f.CheckWrites(), ErrHung)
	f.StartSync()
	_, err = NewSecondary(f, SecondaryConfig{})
	wantErr(t, "another use of it", err, ErrHung)
	closesLocked(t, f, name, late, release)
}

// The system tells an error of a flush once. Who has opened the image before that would take the next flush for good.
func TestAnImageStaysLockedUntilALateFlushHasReturned(t *testing.T) {
	// Another flush of the image, for which the one below waits.
	f, name, late, release := lateCall(t, func(f *File, do func() error) error { return f.syncs.run(do) })
	late.Go(func() { f.Sync() })
	for f.changing.Load() == 0 {
		runtime.Gosched()
	}
	closesLocked(t, f, name, late, release)
}

func TestAnImageStaysLockedUntilALateWriteOfItsMetadataHasReturned(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := CreateFile(name, testSize)
	must(t, err)
	m, err := f.Metadata()
	must(t, err)
	must(t, m.Hold(1))
	release, begun := make(chan struct{}), make(chan struct{})
	late := new(sync.WaitGroup)
	late.Go(func() { m.access.use(opUpdate, func() error { close(begun); <-release; return nil }) })
	<-begun
	m.access.flight.hung.Store(&HungError{Device: "metadata", Op: opUpdate})
	wantErr(t, "a change", m.Hold(2), ErrHung)
	closesLocked(t, f, name, late, release)
	wantErr(t, "to close it again", f.Close(), os.ErrClosed)
}

func TestMetadataThatCannotBeOpenedHoldsUpNobodyForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "image")
		f, err := CreateFile(name, testSize)
		must(t, err)
		release := make(chan struct{})
		begin := time.Now()
		_, err = f.metadataBy(func() (*Metadata, error) {
			<-release
			return f.openMetadata()
		})
		var hung *HungError
		if !errors.As(err, &hung) || hung.Op != "open" || !strings.Contains(err.Error(), name) || time.Since(begin) != DefaultHungAfter {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		_, err = f.Metadata()
		wantErr(t, "Metadata again", err, ErrHung)
		_, err = NewSecondary(f, SecondaryConfig{})
		wantErr(t, "NewSecondary", err, ErrHung)
		must(t, f.Close())
		_, err = OpenFile(name)
		wantErr(t, "opening it anew before the file system has answered", err, ErrLocked)
		close(release)
		synctest.Wait()
	})
}
