package main

import (
	"os"

	"github.com/gocolo/lockstep/replication"
)

const simDisk = 256 << 10

// A store is the disk of a host, with the place for its metadata, as it is when no
// process is there: what was written last stays.
type store struct{ disk, meta []byte }

func newStore() *store { return &store{make([]byte, simDisk), make([]byte, 16<<10)} }

// A platter is a part of a store, as a process has it. A process that is dead changes
// nothing any more, not even between two of its writes.
type platter struct {
	p *process
	b []byte
}

func (d *platter) ReadAt(b []byte, off int64) (int, error) {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	return copy(b, d.b[off:]), nil
}

func (d *platter) WriteAt(b []byte, off int64) (int, error) {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.p.dead {
		return 0, os.ErrClosed
	}
	return copy(d.b[off:], b), nil
}

func (d *platter) Sync() error {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	if d.p.dead {
		return os.ErrClosed
	}
	return nil
}

func (d *platter) Size() int64 {
	d.p.w.mu.Lock()
	defer d.p.w.mu.Unlock()
	return int64(len(d.b))
}

func (d *platter) Close() error { return nil }

// A simImage is a store that a process has opened.
type simImage struct {
	platter
	meta  *replication.Metadata
	store *store
}

// Grow implements replication.Grower.
func (i *simImage) Grow(size int64) error {
	i.p.w.mu.Lock()
	defer i.p.w.mu.Unlock()
	if i.p.dead {
		return os.ErrClosed
	}
	if n := size - int64(len(i.store.disk)); n > 0 {
		i.store.disk = append(i.store.disk, make([]byte, n)...)
	}
	i.b = i.store.disk
	return nil
}

func (i *simImage) Metadata() (*replication.Metadata, error) { return i.meta, nil }
