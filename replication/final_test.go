package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// An error that is final stays so, whichever way the device is asked again.

func TestALogThatFailedOnceKeepsNoFurtherPreImages(t *testing.T) {
	ctx := context.Background()
	hidden := newFake(minJournal, 0)
	j, err := OpenJournal(hidden, newFake(minJournal, 0))
	must(t, err)
	m, err := OpenMetadata(newMetaDevice(testSize))
	must(t, err)
	disk := newFake(testSize, 0x11)
	s, err := NewSecondary(besideDisk{disk, m}, SecondaryConfig{Journal: j})
	must(t, err)
	of := Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true}
	must(t, s.Adopt(of))
	must(t, s.Start(ctx))
	must(t, s.Stop(ctx, false))
	must(t, s.Adopt(of)) // what the disk is now is kept while it is filled
	write(t, s.Export(), 0x22, 0, BlockSize)
	hidden.failWrite = func(off int64, _ int) error {
		if off >= logStart {
			return errInjected
		}
		return nil
	}
	_, err = s.Export().WriteAt(make([]byte, BlockSize), BlockSize)
	wantErr(t, "a write whose pre-image is not kept", err, errInjected)
	hidden.failWrite = nil
	_, err = s.Export().WriteAt(make([]byte, BlockSize), 2*BlockSize)
	wantErr(t, "a write behind a hole in the log", err, errInjected)
	want(t, "the disk", disk, 0x11, BlockSize, testSize-BlockSize)
}

func TestARecoveryWhoseFlushFailedIsNotRepeated(t *testing.T) {
	ctx := context.Background()
	hidden, active, disk := newFake(minJournal, 0), newFake(minJournal, 0), newPoweredFake(make([]byte, testSize))
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(disk, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(ctx))
	write(t, s.Export(), 0x22, 0, BlockSize)
	j, err = OpenJournal(hidden, active)
	must(t, err)
	disk.failSync = func() error { return errInjected }
	_, _, err = j.Recover(ctx, disk)
	wantErr(t, "the recovery", err, errInjected)
	disk.failSync = nil
	_, _, err = j.Recover(ctx, disk)
	wantErr(t, "another, which does not find what was not written", err, errInjected)
}

func TestADiskWhosePreImageCouldNotBeSavedIsNotPrepared(t *testing.T) {
	s, disk := newSecondary(t, SecondaryConfig{})
	disk.failRead = func(int64, int) error { return errInjected }
	_, err := s.Export().WriteAt(make([]byte, BlockSize), 0)
	wantErr(t, "the write", err, errInjected)
	disk.failRead = nil
	wantErr(t, "Prepare", s.Prepare(t.Context(), 1), ErrBroken)
}

// The guest writes while what was copied is made stable, so that it is made stable once more.
func TestACommitWhoseLastFlushFailsHasFailed(t *testing.T) {
	ctx := context.Background()
	s, disk := newSecondary(t, SecondaryConfig{DeferCommit: true})
	write(t, s, 0x33, 0, BlockSize)
	must(t, s.Stop(ctx, true))
	flushes := 0
	disk.failSync = func() error {
		if flushes++; flushes > 1 {
			return errInjected
		}
		_, err := s.WriteAt(make([]byte, BlockSize), 0) // to the overlay, which it is still in
		return err
	}
	wantErr(t, "the commit", s.Commit(ctx), errInjected)
	if st := s.State(); st != FailoverFailed || flushes != 2 {
		t.Errorf("state %v after %d flushes", st, flushes)
	}
	wantErr(t, "the copy", s.LocalErr(), errInjected)
}

// What stable storage says has an order: a copy that is recorded as inconsistent has a journal that makes it
// consistent, and a journal that is clean has a copy that is.
func TestACopyIsInconsistentOnRecordOnlyWhereItsJournalIsUnclean(t *testing.T) {
	ctx := context.Background()
	of := Identity{Disk: newID(), Generation: Generation{1, 1}, Overwrite: true}
	hidden, active, dev, disk := newFake(minJournal, 0), newFake(minJournal, 0), newMetaDevice(testSize), newFake(testSize, 0x11)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(reopened(t, disk, dev), SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Adopt(of))
	must(t, s.Start(ctx))
	state := func() CopyState {
		m, err := OpenMetadata(dev)
		must(t, err)
		return m.Identity().State
	}
	clean := func() bool {
		j, err := OpenJournal(hidden, active)
		must(t, err)
		return j.Clean()
	}
	dev.failWrite = func(int64, int) error { return errInjected }
	wantErr(t, "the end", s.Stop(ctx, false), errInjected)
	if state() != CopyInconsistent || clean() {
		t.Errorf("the end could not be recorded on the copy, which is %v, and the journal is clean: %v", state(), clean())
	}

	dev.failWrite = nil
	j, err = OpenJournal(hidden, active)
	must(t, err)
	d := reopened(t, disk, dev)
	_, _, err = j.Recover(ctx, d)
	must(t, err)
	s, err = NewSecondary(d, SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Adopt(of))
	hidden.failWrite = func(int64, int) error { return errInjected }
	wantErr(t, "another start", s.Start(ctx), errInjected)
	if state() != CopyClean {
		t.Errorf("the start could not be recorded in the journal, and the copy is %v", state())
	}
}

// A generation may be the same by chance, or by a lie.
func TestACopyOfAnotherDiskIsNamedAsSuch(t *testing.T) {
	m, err := OpenMetadata(newMetaDevice(testSize))
	must(t, err)
	s, err := NewSecondary(besideDisk{newFake(testSize, 0x11), m}, SecondaryConfig{})
	must(t, err)
	of := Identity{Disk: newID(), Generation: Generation{1, 1}}
	must(t, s.Adopt(of))
	of.Disk = newID()
	wantErr(t, "Adopt", s.Adopt(of), ErrIdentity)
}

func TestAWriteWaitsForACheckpointNoLongerThanItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSecondary(t, SecondaryConfig{ActiveBytes: fullBlocks * BlockSize, FullTimeout: 5 * time.Second, Events: new(event.Bus)})
		begin := time.Now()
		var err error
		for off := int64(0); err == nil && off < testSize; off += BlockSize {
			_, err = s.WriteAt(make([]byte, BlockSize), off)
		}
		wantErr(t, "the write for which there is no room", err, ErrFull)
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("it has waited for %v", took)
		}
	})
}

// The marks go only when the checkpoint that makes them needless is on record.
func TestMarksStayWhereTheirCheckpointIsNotOnRecord(t *testing.T) {
	const size = 2 * intentActive * intentRegion
	dev := newMetaDevice(size)
	of, err := openIntent(newStableDisk(dev, "metadata"), size)
	must(t, err)
	must(t, of.ensure(0, size))
	err = of.settle(func(int64, int64) bool { return false }, func() error { return errInjected })
	wantErr(t, "settle", err, errInjected)
	again, err := openIntent(newStableDisk(dev, "metadata"), size)
	must(t, err)
	marked := int64(0)
	again.marked(func(_, n int64) { marked += n })
	if marked != size {
		t.Errorf("%d of %d bytes are marked", marked, int64(size))
	}
}

// zeroedDisk is a disk of zeroes that tells how much it was asked to zero at once.
type zeroedDisk struct {
	size, most int64
}

func (d *zeroedDisk) Size() int64                              { return d.size }
func (d *zeroedDisk) ReadAt(p []byte, off int64) (int, error)  { clear(p); return len(p), nil }
func (d *zeroedDisk) WriteAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }
func (d *zeroedDisk) Sync() error                              { return nil }
func (d *zeroedDisk) WriteZeroes(_, n int64) error             { d.most = max(d.most, n); return nil }

// A Mark waits for what is under way.
func TestAMarkMayComeInTheMiddleOfLargeZeroes(t *testing.T) {
	d := &zeroedDisk{size: 1 << 30}
	p, err := NewPrimary(d, PrimaryConfig{})
	must(t, err)
	must(t, p.Trim(0, d.size))
	if d.most > maxForwardZeroes {
		t.Errorf("%d bytes were zeroed at once", d.most)
	}
}
