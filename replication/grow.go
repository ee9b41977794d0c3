package replication

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
)

// Grower is a Disk that can become longer.
type Grower interface {
	// Grow makes the disk size bytes long, a multiple of SectorSize and not less
	// than it is. What is new reads as zeroes.
	Grow(size int64) error
}

func growDisk(d Disk, size int64) error {
	g, ok := d.(Grower)
	if !ok {
		return fmt.Errorf("%w: the disk cannot grow", errors.ErrUnsupported)
	}
	return g.Grow(size)
}

// mayGrow returns an error unless a disk of from bytes may become one of to.
func mayGrow(from, to int64) error {
	if err := checkSize("the disk", to); err != nil {
		return err
	}
	if to < from || from%BlockSize != 0 {
		return fmt.Errorf("%w: a disk of %d bytes, which would have to be a multiple of %d, does not become one of %d", ErrSize, from, BlockSize, to)
	}
	return nil
}

// sizesDiffer returns the error of two disks that cannot be copies of each other, as when a
// growth has failed, or a host has crashed, after the first of them had grown.
func sizesDiffer(ours, theirs int64) error {
	if ours < theirs {
		return fmt.Errorf("%w: the secondary's disk has %d bytes, the local one %d; let the local one grow to that (Primary.Grow without a Remote), and attach again", ErrSize, theirs, ours)
	}
	return fmt.Errorf("%w: the local disk has %d bytes, the secondary's %d; let the secondary's grow to that (Secondary.Grow), and attach a new connection to it", ErrSize, ours, theirs)
}

// Grow makes the secondary disk longer, before the primary's grows and while both run. The
// new part is zero and belongs to no checkpoint yet. A connection to the Export that is
// made from now on sees the new size; the primary needs one for its own Grow. The error is
// ErrSize, or errors.ErrUnsupported if the disk is no [Grower], or that of the disk; the
// size is unchanged then. The host has to tell the guest of the new size.
func (s *Secondary) Grow(ctx context.Context, size int64) error {
	return s.dog.call(ctx, func() error { return s.grow(size) })
}

func (s *Secondary) grow(size int64) error {
	h := s.lockAll()
	defer s.locks.unlock(h)
	if err := mayGrow(s.size.Load(), size); err != nil {
		return err
	}
	if st := s.State(); st == Failover || st == FailoverFailed {
		return fmt.Errorf("%w: state %v", ErrRunning, st)
	}
	if j := s.cfg.Journal; j != nil {
		// A crash leaves the disk of either size.
		if err := j.growing(size); err != nil {
			return err
		}
	}
	if err := growDisk(s.disk, size); err != nil {
		return err
	}
	s.disk.wrote()
	if err := s.syncDisk(); err != nil {
		return err
	}
	if j := s.cfg.Journal; j != nil {
		if err := j.setSize(size); err != nil {
			return err
		}
	}
	s.active.grow(size)
	s.active.keepSpare(size)
	s.hidden.grow(size)
	s.size.Store(size)
	return nil
}

// setSize records how long the disk is.
func (j *Journal) setSize(size int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.size, b.grows = uint64(size), 0
	return j.store(b)
}

// growing records how long the disk is about to be.
func (j *Journal) growing(size int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.super
	b.grows = uint64(size)
	return j.store(b)
}

// grow makes o an overlay of a disk of size bytes. The whole disk is locked.
func (o *overlay) grow(size int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	blocks := (size + BlockSize - 1) / BlockSize
	dir := make([]atomic.Pointer[leaf], max((blocks+leafBlocks-1)/leafBlocks, int64(len(o.dir))))
	for i := range o.dir {
		dir[i].Store(o.dir[i].Load())
	}
	o.dir = dir
}

// Grow makes the local disk longer, after the secondary's, while the guest and replication
// run. remote is a new connection to the same copy, which sees the new size; it replaces
// the attached one, once everything on that has been answered. Without a secondary remote
// is nil.
//
// On an error nothing has changed: ErrSize if a size does not fit, ErrIdentity if
// remote is to another copy, ErrRunning between a Mark and its Loaded, when it may
// be tried again, errors.ErrUnsupported if the disk is no [Grower], ctx's, or a
// *BrokenError. It owns remote only if it succeeds. It is called as Attach is, one
// at a time with the others.
func (p *Primary) Grow(ctx context.Context, size int64, remote Remote) error {
	return p.dog.call(ctx, func() error { return p.grow(ctx, size, remote) })
}

func (p *Primary) grow(ctx context.Context, size int64, remote Remote) error {
	p.steer.Lock()
	defer p.steer.Unlock()
	if err := mayGrow(p.size.Load(), size); err != nil {
		return err
	}
	old := p.link.Load()
	switch {
	case (old == nil) != (remote == nil):
		return fmt.Errorf("%w: a secondary is attached, or is given, and not the other", ErrNotRunning)
	case remote != nil && remote.Size() != size:
		return fmt.Errorf("%w: the secondary has %d bytes, not %d", ErrSize, remote.Size(), size)
	}
	align := int64(1)
	if remote != nil {
		var err error
		if align, err = alignOf(remote, size); err != nil {
			return err
		}
		if err := checkWrites("the secondary's disk", remote); err != nil {
			return err
		}
	}
	if other, ok := remote.(Identified); ok {
		theirs, err := other.Identity()
		if err != nil {
			return err
		}
		if theirs.Copy != p.peer.run.Copy || theirs.instance != p.peer.instance {
			return fmt.Errorf("%w: it is copy %v, the one that is attached %v", ErrIdentity, theirs.Copy, p.peer.run.Copy)
		}
	}
	if err := p.growLocked(ctx, size, old, remote, align); err != nil || old == nil {
		return err
	}
	old.close()
	return nil
}

// growLocked does what is left of Grow once the sizes and the copies fit.
func (p *Primary) growLocked(ctx context.Context, size int64, old *Forwarder, remote Remote, align int64) error {
	// The guest's writes wait while those before arrive: they have to be on their way on one
	// connection or the other. Cut ends the wait, as it does theirs.
	h := p.lockAll()
	defer p.locks.unlock(h)
	if old != nil {
		if old.isHeld() { // no Mark comes while all is locked
			return fmt.Errorf("%w: what is held waits for Loaded", ErrRunning)
		}
		if err := old.arrived(ctx, 0, math.MaxInt64); err != nil {
			return err
		}
	}
	if err := p.meta.grow(size, p.peer.intent); err != nil {
		return err
	}
	if err := growDisk(p.local, size); err != nil {
		return err
	}
	p.local.wrote()
	for _, b := range []*Bitmap{p.peer.dirty, p.peer.epoch, p.peer.older, p.peer.copied} {
		b.grow(size)
	}
	if p.peer.marks != nil {
		p.peer.marks.grow(size)
	}
	p.size.Store(size)
	p.room.grow(size)
	if old == nil {
		return nil
	}
	f := NewForwarder(remote, old.cfg)
	f.state, f.marked = Running, old.marked
	p.align.Store(align)
	p.link.Store(f)
	_, err := old.retire() // it has nothing under way; Grow closes it, for which no write has to wait
	p.changed()
	return err
}

func (f *Forwarder) isHeld() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// grow makes room for the bitmap of a disk of size bytes, and makes t that bitmap.
func (m *Metadata) grow(size int64, t *intent) error {
	if t == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	if need := metadataHead + intentBytes(size); m.dev.Size() < need {
		dev := m.dev
		m.mu.Unlock()
		err := m.access.use("grow", func() error { return growDisk(dev, need) })
		m.mu.Lock()
		if err != nil {
			return fmt.Errorf("replication: metadata: %w", err)
		}
	}
	t.grow(size)
	return nil
}

// makeRoom makes the device long enough for the bitmap of a disk of size bytes, if it can become
// longer: a disk may have grown as a secondary's, or outside. The new part is zero, and so marks
// nothing. Therefore there must be no base: it would read the new part as an account of writes.
// Where there is no room, there is no account, as before.
func (m *Metadata) makeRoom(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take()
	defer m.give()
	need := metadataHead + intentBytes(size)
	if m.dev == nil || m.dev.Size() >= need {
		return nil
	}
	g, ok := m.dev.Disk.(Grower)
	if !ok {
		return nil
	}
	if m.peer != (peerBase{}) {
		next := m.facts
		next.peer = peerBase{}
		if err := m.store(next); err != nil {
			return err
		}
	}
	dev := m.dev
	m.mu.Unlock()
	m.access.use("grow", func() error { // or it is as long as it was
		defer dev.wrote()
		return g.Grow(need)
	})
	m.mu.Lock()
	return nil
}

// grow makes t the bitmap of a disk of size bytes. The device has room for it.
func (t *intent) grow(size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.writing {
		t.ended.Wait()
	}
	words := intentBytes(size) / SectorSize * intentWords
	want, disk := make([]uint32, words), make([]uint32, words)
	copy(want, t.want)
	copy(disk, t.disk)
	t.want, t.disk = want, disk
	t.size, t.regions = size, (size+intentRegion-1)/intentRegion
}
