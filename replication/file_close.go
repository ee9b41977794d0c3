package replication

import (
	"errors"
	"os"
	"sync"
)

// openUntil keeps the descriptor of a File open, and with it the lock of the image, while what was asked of its
// metadata is under way, though the File was closed: who opens the image then must find metadata that does not change.
// The zero value is ready.
type openUntil struct {
	mu     sync.Mutex
	users  int
	closed bool
}

// keepOpen keeps the image locked until letGo. The error is os.ErrClosed if it is closed.
func (d *File) keepOpen() error {
	d.open.mu.Lock()
	defer d.open.mu.Unlock()
	if d.open.closed {
		return os.ErrClosed
	}
	d.open.users++
	return nil
}

// letGo ends what keepOpen has begun.
func (d *File) letGo() {
	d.open.mu.Lock()
	defer d.open.mu.Unlock()
	if d.open.users--; d.open.users == 0 && d.open.closed {
		d.release()
	}
}

// release closes the descriptor.
func (d *File) release() error {
	if d.changing.Load() == 0 {
		unlockFile(d.f)
	}
	return d.f.Close()
}

// Close closes the file and the file with its metadata. Where a change or a flush of either is under way, that
// goes on, and the lock ends with it.
func (d *File) Close() error {
	d.metaMu.Lock()
	defer d.metaMu.Unlock()
	d.closed.Store(true)
	var err error
	if d.meta != nil {
		err = d.meta.shut()
	}
	d.open.mu.Lock()
	defer d.open.mu.Unlock()
	if d.open.closed {
		return errors.Join(os.ErrClosed, err)
	}
	if d.open.closed = true; d.open.users == 0 {
		err = errors.Join(d.release(), err)
	}
	return err
}
