// Package fake has what tests give a machine of package pc, or of gokvm, to work with: a disk in
// memory and an uplink that leads nowhere.
package fake

import (
	"io"
	"sync"
)

// A Disk is storage in memory. Its methods may be called from any goroutine.
type Disk struct {
	Data []byte // what is on it; for others than the methods while the machine stands still

	mu sync.Mutex
}

// NewDisk returns a disk of size bytes, all zero.
func NewDisk(size int) *Disk { return &Disk{Data: make([]byte, size)} }

// Size returns the size in bytes.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.Data))
}

// Grow makes the disk longer, by zeros.
func (d *Disk) Grow(size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Data = append(d.Data, make([]byte, size-len(d.Data))...)
}

// Sync does nothing: what is written is there.
func (d *Disk) Sync() error { return nil }

// ReadAt reads as io.ReaderAt says.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := copy(p, d.Data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes what fits in front of the end.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.Data[off:], p), nil
}

// Nowhere is an uplink that takes every packet at once.
type Nowhere struct{}

// WritePacket drops a packet.
func (Nowhere) WritePacket([]byte) error { return nil }

// Room returns nil, since there is always room.
func (Nowhere) Room() <-chan struct{} { return nil }
