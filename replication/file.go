package replication

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// File is a raw disk image, or a block device, as a [Disk]. Its methods may
// be called from any goroutine.
type File struct {
	f          *os.File
	size       atomic.Int64
	made       bool  // CreateFile has made the file
	unwritable error // why nothing can be written; see CheckWrites

	abandoned atomic.Pointer[error] // see Abandon
	closed    atomic.Bool
	changing  atomic.Int64 // the operations under way that change the file, or make it stable

	syncs sharedSync // one at a time, because the system reports an error once

	metaMu   sync.Mutex
	metaName string // see KeepMetadata; empty: beside the image
	meta     *Metadata
	metaErr  error // the metadata could not be opened since the file system hung

	open openUntil // what keeps f open
}

var (
	_ Disk       = (*File)(nil)
	_ Trimmer    = (*File)(nil)
	_ ZeroWriter = (*File)(nil)

	_ SyncStarter  = (*File)(nil)
	_ WriteChecker = (*File)(nil)
	_ Abandoner    = (*File)(nil)
)

// NewFile uses f as a disk of the size that it has now. The caller keeps f,
// and closes it after the last use of the File. The error is errors.ErrUnsupported if f
// is open with O_DIRECT or O_APPEND: a File reads and writes at any offset and from any
// memory. (On Linux.)
func NewFile(f *os.File) (*File, error) {
	if err := checkFlags(f); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // unlike Stat, right for block devices too
	if err != nil {
		return nil, err
	}
	if err := checkSize(f.Name(), size); err != nil {
		return nil, err
	}
	d := &File{f: f, unwritable: readOnly(f)}
	d.size.Store(size)
	return d, nil
}

// OpenFile opens the image or device of that name for reading and writing, and
// locks it: while it is open, OpenFile and CreateFile of it, here or in another
// process, return ErrLocked, and a QEMU refuses it too. (On Linux.)
//
// It waits for the system as os.OpenFile does, for as long as that takes: HungAfter of a Primary or a Secondary is for
// what is asked of the disk once it is open. Who must not wait calls OpenFile on a goroutine of its own.
func OpenFile(name string) (*File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	var d *File
	if err = lockFile(f); err == nil {
		d, err = NewFile(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// CreateFile opens the image of that name, which is made, sparse and size
// bytes long, if it is not there. One that is there must have that size. When
// CreateFile returns, the name is on stable storage. It locks as OpenFile does, and waits for the
// system without a bound, as that does.
func CreateFile(name string, size int64) (*File, error) {
	if err := checkSize(name, size); err != nil {
		return nil, err
	}
	return createFile(name, size, lockFile)
}

// createFile does what CreateFile does, and calls lock in place of lockFile.
func createFile(name string, size int64, lock func(*os.File) error) (*File, error) {
	d, err := makeFile(name, size, lock)
	if err == nil && d.Size() != size {
		err = errors.Join(fmt.Errorf("%w: %s has %d bytes, not %d", ErrSize, name, d.Size(), size), d.Close())
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// makeFile does what createFile does, and takes a file that is there whatever size it has. It
// takes the lock before it looks at the file, since an empty file may belong to another
// process that is about to fill it.
func makeFile(name string, size int64, lock func(*os.File) error) (*File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*File, error) { return nil, errors.Join(err, f.Close()) }
	if err := lock(f); err != nil {
		return fail(err)
	}
	st, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	made := false
	if st.Mode().IsRegular() && st.Size() == 0 {
		if err := errors.Join(f.Truncate(size), f.Sync(), syncDir(filepath.Dir(name))); err != nil {
			return fail(err)
		}
		made = true
	}
	d, err := NewFile(f)
	if err != nil {
		return fail(err)
	}
	d.made = made
	return d, nil
}

// setLength makes a regular file longer or shorter. No one uses it as a disk yet.
func (d *File) setLength(size int64) error {
	st, err := d.f.Stat()
	if err != nil || !st.Mode().IsRegular() || d.Size() == size {
		return err
	}
	if err := errors.Join(d.f.Truncate(size), d.Sync()); err != nil {
		return err
	}
	d.size.Store(size)
	return nil
}

// syncDir makes names created in a directory stable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Size implements [Disk].
func (d *File) Size() int64 { return d.size.Load() }

// CheckWrites implements [WriteChecker]: the error is syscall.EROFS if the file is open for
// reading only, or is a block device that is read-only, which root may open for writing all the
// same. (On Linux.)
func (d *File) CheckWrites() error {
	if err := d.abandoned.Load(); err != nil {
		return *err
	}
	return d.unwritable
}

// Abandon implements [Abandoner]. What is under way may still change the file, so that Close
// leaves it locked until that has returned; the image can be opened again then.
func (d *File) Abandon(err error) { d.abandoned.CompareAndSwap(nil, &err) }

// change runs do, which changes the file, or makes it stable.
func (d *File) change(do func() error) error {
	d.changing.Add(1)
	defer d.changing.Add(-1)
	if d.closed.Load() { // and Close may have seen that nothing is under way
		return os.ErrClosed
	}
	if err := d.abandoned.Load(); err != nil {
		return *err
	}
	return do()
}

// ReadAt implements io.ReaderAt.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), d.size.Load()); err != nil {
		return 0, err
	}
	if err := d.abandoned.Load(); err != nil {
		return 0, *err
	}
	return d.f.ReadAt(p, off)
}

// WriteAt implements io.WriterAt. It never makes the file longer.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), d.size.Load()); err != nil {
		return 0, err
	}
	d.changing.Add(1) // as in change, which would allocate
	defer d.changing.Add(-1)
	if d.closed.Load() {
		return 0, os.ErrClosed
	}
	if err := d.abandoned.Load(); err != nil {
		return 0, *err
	}
	return d.f.WriteAt(p, off)
}

// Trim gives the storage back where the system can do that; the range then
// reads as zeroes. Elsewhere it does nothing.
func (d *File) Trim(off, n int64) error {
	if err := checkRange(off, n, d.size.Load()); err != nil {
		return err
	}
	err := d.change(func() error { return d.punch(off, n) })
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// WriteZeroes zeroes the range, giving the storage back where the system can
// do that and writing zeroes where it cannot.
func (d *File) WriteZeroes(off, n int64) error {
	if err := checkRange(off, n, d.size.Load()); err != nil {
		return err
	}
	return d.change(func() error {
		err := d.punch(off, n)
		if errors.Is(err, errors.ErrUnsupported) {
			return d.writeZeroes(off, n)
		}
		return err
	})
}

// punch zeroes the range by giving its storage back. The error is errors.ErrUnsupported, with
// nothing zeroed, where the system cannot do that.
func (d *File) punch(off, n int64) error {
	err := punchHole(d.f, off, n)
	if errors.Is(err, errPunchAlign) {
		return d.punchInside(off, n)
	}
	return err
}

// errPunchAlign is the error of punchHole for a range that is no multiple of
// the sectors of a device whose sectors are larger than SectorSize.
var errPunchAlign = errors.New("replication: not a multiple of the device's sectors")

// punchInside zeroes a range of a device whose sectors are larger than
// SectorSize: with a hole inside, and by writing the ends, which share a sector
// with their neighbours.
func (d *File) punchInside(off, n int64) error {
	end := off + n
	from, to := (off+BlockSize-1)&^(BlockSize-1), end&^(BlockSize-1)
	if from >= to {
		return d.writeZeroes(off, n)
	}
	err := punchHole(d.f, from, to-from)
	switch {
	case errors.Is(err, errPunchAlign): // sectors larger than a block
		return d.writeZeroes(off, n)
	case errors.Is(err, errors.ErrUnsupported): // the system looks at the range before it looks whether it can
		return err
	}
	return errors.Join(err, d.writeZeroes(off, from-off), d.writeZeroes(to, end-to))
}

// writeZeroes writes zeroes to a range of the disk.
func (d *File) writeZeroes(off, n int64) error {
	for n > 0 {
		c := min(n, int64(len(zeroes)))
		if _, err := d.f.WriteAt(zeroes[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// Sync implements [Disk]. Calls during a sync share the next one. If it fails, the error is a
// *SyncError, and every later call returns the same error.
func (d *File) Sync() error {
	d.changing.Add(1) // the system tells an error once: who opens the image before that would not hear of it
	defer d.changing.Add(-1)
	if err := d.abandoned.Load(); err != nil {
		return *err
	}
	return d.syncs.run(d.datasync)
}

func (d *File) datasync() error {
	if err := datasync(d.f); err != nil {
		return &SyncError{Disk: d.f.Name(), Err: err}
	}
	return nil
}

// StartSync implements [SyncStarter] where the system can do that. Elsewhere it
// does nothing.
func (d *File) StartSync() { d.change(func() error { startSync(d.f); return nil }) }

// Grow makes the image longer; the new part reads as zeroes. A device must have been made
// longer before, with zeroes in the new part. The error is ErrSize if the device is not so
// long, or if the image would become shorter.
func (d *File) Grow(size int64) error {
	if err := checkSize(d.f.Name(), size); err != nil {
		return err
	}
	return d.change(func() error { return d.grow(size) })
}

// grow does what Grow does.
func (d *File) grow(size int64) error {
	if old := d.size.Load(); size < old {
		return fmt.Errorf("%w: %s has %d bytes and does not shrink to %d", ErrSize, d.f.Name(), old, size)
	}
	st, err := d.f.Stat()
	if err == nil && st.Mode().IsRegular() && st.Size() < size {
		err = errors.Join(d.f.Truncate(size), d.Sync())
	}
	var is int64
	if err == nil {
		is, err = d.f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return err
	}
	if is < size {
		return fmt.Errorf("%w: %s has %d bytes, not %d", ErrSize, d.f.Name(), is, size)
	}
	d.size.Store(size)
	return nil
}

// Made reports whether CreateFile has made the image, so that there is nothing
// in it that could be lost.
func (d *File) Made() bool { return d.made }
