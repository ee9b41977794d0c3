package protect

import (
	"errors"
	"fmt"
	"sync"

	"github.com/gocolo/lockstep/replication"
)

// A remembered image has no place of its own for its metadata, which is kept in memory for as
// long as the Disk is used.
type remembered struct {
	replication.Disk
	once sync.Once
	meta *replication.Metadata
	err  error
}

// metadataBytes is how large the metadata of a disk is without a bitmap, which
// only another process would need.
const metadataBytes = 8 << 10

// Metadata implements replication.MetadataKeeper.
func (r *remembered) Metadata() (*replication.Metadata, error) {
	r.once.Do(func() { r.meta, r.err = replication.OpenMetadata(&memory{b: make([]byte, metadataBytes)}) })
	return r.meta, r.err
}

// WriteZeroes implements replication.ZeroWriter. It and the methods below pass on
// what the image can do besides, or do the same by other means where it cannot.
func (r *remembered) WriteZeroes(off, n int64) error {
	return replication.WriteZeroes(r.Disk, off, n)
}

func (r *remembered) Trim(off, n int64) error {
	if t, ok := r.Disk.(replication.Trimmer); ok {
		return t.Trim(off, n)
	}
	return nil
}

func (r *remembered) WriteFUA(p []byte, off int64) error { return replication.WriteFUA(r.Disk, p, off) }

func (r *remembered) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	return replication.Extents(r.Disk, off, n, yield)
}

// Grow implements replication.Grower if the image does.
func (r *remembered) Grow(size int64) error {
	g, ok := r.Disk.(replication.Grower)
	if !ok {
		return fmt.Errorf("%w: the image cannot grow", errors.ErrUnsupported)
	}
	return g.Grow(size)
}

// Align implements replication.Aligner.
func (r *remembered) Align() int64 {
	if a, ok := r.Disk.(replication.Aligner); ok {
		return a.Align()
	}
	return 1
}

// CheckWrites implements replication.WriteChecker.
func (r *remembered) CheckWrites() error {
	if c, ok := r.Disk.(replication.WriteChecker); ok {
		return c.CheckWrites()
	}
	return nil
}

// Abandon implements replication.Abandoner.
func (r *remembered) Abandon(err error) {
	if a, ok := r.Disk.(replication.Abandoner); ok {
		a.Abandon(err)
	}
}

// memory is a small disk in memory, for the metadata of an image that has no
// place for it.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.b[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.b[off:], p), nil
}

func (m *memory) Size() int64 { return int64(len(m.b)) }
func (m *memory) Sync() error { return nil }

// metadata returns what is known of this host's copy.
func (d *Disk) metadata() (*replication.Metadata, error) {
	k, ok := d.image.(replication.MetadataKeeper)
	if !ok {
		return nil, nil
	}
	return k.Metadata()
}

// hold records on the disks of which generation this host's copy of the guest is:
// what a cold start asks for.
//
// It does nothing where this host knows a later generation, which it holds or has
// seen already.
func (j *Job) hold(generation uint64) {
	j.holding <- struct{}{}
	defer func() { <-j.holding }()
	j.mu.Lock()
	old := generation < j.generation
	j.mu.Unlock()
	if old {
		return
	}
	for _, d := range j.cfg.Disks {
		m, err := d.metadata()
		if err == nil && m != nil {
			asked := d.waits.begin(opGeneration)
			err = m.Hold(generation)
			d.waits.end(asked)
		}
		if err != nil {
			// A cold start will find too old a generation, which the arbiter
			// refuses: nothing is started that should not be.
			j.unrecorded(fmt.Errorf("disk %q: record generation %d: %w", d.cfg.Name, generation, err))
		}
	}
}

// unrecorded tells that the disks do not say of which generation they are, before the guest goes on with them.
// The log has it for whoever finds, after a cold start, disks that are too old: without its words the guest
// has not run in that generation on this host.
func (j *Job) unrecorded(err error) {
	j.note(err)
	j.ownLog().Warn("the disks do not have the guest's generation", "side", j.side().String(), "checkpoint", uint64(0), "error", err)
}

// errCopy says why no guest can be started from the disks here.
var errCopy = errors.New("the disks here are not those of one moment")

// held returns the generation of the copy that this host's disks are, and whether
// it is the guest's own, which lacks nothing that the guest has been told is
// written, or that of a secondary's last checkpoint. 0: the disks do not know.
//
// hold records a generation on one disk after the other, and the power may fail in
// between. Where all disks are the guest's own they are of one moment nevertheless,
// and the generation that only some have was granted.
func held(disks []*Disk) (generation uint64, own bool, err error) {
	own = true
	var low, high *Disk // those with the lowest and the highest generation
	var lowest uint64
	for _, d := range disks {
		m, err := d.metadata()
		switch {
		case err != nil:
			return 0, false, fmt.Errorf("disk %q: %w", d.cfg.Name, err)
		case m == nil:
			return 0, false, nil
		}
		id, h := m.Identity(), m.Held()
		if id.State != replication.CopyClean {
			return 0, false, fmt.Errorf("%w: disk %q is %v", errCopy, d.cfg.Name, id)
		}
		if low == nil || h < lowest {
			low, lowest = d, h
		}
		if high == nil || h > generation {
			high, generation = d, h
		}
		own = own && (id.Writes || id.Disk == (replication.ID{}))
	}
	// One that has none at all may be new.
	if lowest != generation && (!own || lowest == 0 || lowest+1 != generation) {
		return 0, false, fmt.Errorf("%w: disk %q holds generation %d, disk %q %d", errCopy, low.cfg.Name, lowest, high.cfg.Name, generation)
	}
	return generation, own && generation > 0, nil
}
