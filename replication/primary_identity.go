package replication

import (
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/event"
)

var _ MetadataKeeper = (*Primary)(nil)

// Metadata implements [MetadataKeeper] with the metadata of the local disk.
func (p *Primary) Metadata() (*Metadata, error) { return p.meta, nil }

// Identity returns the identity of the local copy.
func (p *Primary) Identity() Identity { return p.meta.Identity() }

// openMetadata reads the metadata of the local copy, and takes from it what the last
// secondary has.
func (p *Primary) openMetadata(local Disk) (err error) {
	if p.meta, err = metadataOf(local); err != nil {
		return err
	}
	p.meta.access.of(event.ModePrimary, p.cfg.Name, p.cfg.HungAfter)
	id, base := p.meta.Identity(), p.meta.base()
	_, promoted := local.(*Secondary) // which may still be copying its overlays down
	switch {
	case promoted, id.State == CopyClean, p.cfg.PermitOutdated:
	case id.State == CopyOutdated:
		return fmt.Errorf("%w: %v; PermitOutdated takes it all the same", ErrOutdated, id)
	default:
		return fmt.Errorf("%w: %v; its journal may make it consistent, PermitOutdated takes it as it is", ErrInconsistent, id)
	}
	// A copy that no guest wrote is of a generation in which another side wrote the disk.
	p.used = base.Copy != (ID{}) && base.Generation == id.Generation || id.Disk != (ID{}) && !id.Writes
	p.raw = !promoted
	p.resumed.Store(p.used || p.raw && p.meta.guardedBy() != ID{})
	p.peer.base = base
	if p.peer.intent, err = p.meta.openIntent(p.size.Load()); err != nil {
		return err
	}
	switch t := p.peer.intent; {
	case t == nil || base.Copy == (ID{}):
		if !p.cfg.InSync {
			p.peer.all()
		}
	case p.cfg.InSync:
		p.peer.marks = NewBitmap(p.size.Load())
		t.marked(p.peer.marks.Set)
	default:
		t.marked(p.peer.dirty.Set)
	}
	return nil
}

// record makes a change of the metadata durable. Where it cannot, and the guest may be
// brought away from a disk that has failed, it remembers the change. See
// PrimaryConfig.Evacuate for why that is sound.
func (p *Primary) record(change func(*Identity, *peerBase)) error {
	err := p.meta.update(change)
	if err != nil && p.mayForget() {
		p.meta.remember(change)
		return nil
	}
	return err
}

// mayForget reports whether the guest goes on, though the metadata cannot be written.
func (p *Primary) mayForget() bool { return p.cfg.Evacuate && p.LocalErr() != nil }

// unguard records that the disk is changed from now on without the journal that it may have
// had, which must not undo that. A Secondary that was promoted still has its own.
func (p *Primary) unguard() error {
	if !p.raw {
		return nil
	}
	return p.meta.guardBy(ID{})
}

// join finds out what the copy on the other side of remote lacks, and has it adopt this
// disk's identity. The caller holds steer, and not mu: the other side may take its time.
func (p *Primary) join(remote Remote) (theirs Identity, lacks int, err error) {
	var known bool
	other, ok := remote.(Identified)
	if ok {
		if theirs, err = other.Identity(); err != nil {
			return theirs, 0, err
		}
		known = theirs.Copy != (ID{})
	}
	ours, lacks, err := p.describe(theirs, known)
	if err == nil && known {
		err = other.Adopt(ours)
	}
	return theirs, lacks, err
}

// describe finds out what theirs, a secondary's copy, lacks, and returns the identity that it is
// to adopt, which is durable on this side.
func (p *Primary) describe(theirs Identity, known bool) (ours Identity, lacks int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lacks, err = p.peer.lacks(p.meta.Identity(), theirs, known, p.cfg.InSync && !p.joined, p.cfg.Overwrite)
	if err != nil {
		if errors.Is(err, ErrOutdated) {
			err = errors.Join(err, p.meta.Outdate())
		}
		return ours, 0, err
	}
	if err := p.unguard(); err != nil && !p.mayForget() {
		return ours, 0, err
	}
	err = p.record(func(i *Identity, _ *peerBase) {
		if i.Disk == (ID{}) {
			i.Disk = newID()
		}
		if p.used || i.Generation == (Generation{}) || i.State != CopyClean {
			i.begin()
		}
		i.State, i.Writes, i.Overwrite = CopyClean, true, false
	})
	if err != nil {
		return ours, 0, err
	}
	if p.meta.isAhead() {
		// After a restart this copy says that it is an older one, which no account of
		// what the secondary lacks refers to.
		lacks = lacksAll
	}
	p.used = false
	p.resumed.Store(false)
	ours = p.meta.Identity()
	ours.Overwrite, ours.instance = p.cfg.Overwrite, theirs.instance
	return ours, lacks, nil
}

// joinedTo makes theirs the copy to which r refers. The caller holds mu and has locked the
// whole disk.
func (p *Primary) joinedTo(theirs Identity, lacks int) error {
	r := &p.peer
	if r.intent == nil { // the metadata may be new
		// What was written until now is accounted for in memory only; it will have been
		// copied when a run begins.
		err := p.meta.makeRoom(p.size.Load())
		if err != nil && !p.mayForget() {
			return err
		}
		if r.intent, err = p.meta.openIntent(p.size.Load()); err != nil {
			return err
		}
	}
	if r.marks != nil && lacks != lacksNothing {
		r.dirty.Or(r.marks) // of the same size
	}
	r.marks = nil
	switch lacks {
	case lacksAll:
		r.all()
	case lacksLost:
		r.restarted()
	}
	if theirs.Copy != r.base.Copy {
		r.base = peerBase{} // the bitmaps refer to another copy from now on
	}
	r.run = peerBase{Copy: theirs.Copy, Generation: p.meta.Identity().Generation}
	r.instance = theirs.instance
	p.room.set(p.size.Load(), theirs.room, int64(theirs.zeroes))
	p.joined = true
	return nil
}

// begun records to which copy the bitmaps refer, when a run begins. The caller holds mu.
func (p *Primary) begun() error {
	if err := p.record(func(_ *Identity, b *peerBase) { *b = p.peer.run }); err != nil {
		return err
	}
	p.peer.base = p.peer.run
	p.used = true
	return nil
}

// settle clears durably the marks of what the secondary has with the checkpoint of epoch.
func (p *Primary) settle(epoch uint64) error {
	p.mu.Lock()
	running := p.State() == Running
	if running {
		p.peer.base.Epoch = epoch
	}
	p.mu.Unlock()
	if !running || p.peer.intent == nil {
		return nil // the durable marks may still refer to another copy
	}
	err := p.peer.intent.settle(p.peer.differs, func() error {
		return p.meta.update(func(_ *Identity, b *peerBase) { b.Epoch = epoch })
	})
	if p.evacuates.Load() || lacksRoom(err) {
		return nil // marks that stay where they need not cost time after a restart, no more
	}
	return err
}

// goAlone begins a generation, because the guest goes on without its secondary. The caller
// holds mu.
func (p *Primary) goAlone() error {
	if !p.used {
		return nil
	}
	err := p.record(func(i *Identity, _ *peerBase) { i.begin(); i.Writes = true })
	if err == nil {
		p.used = false
		p.resumed.Store(false)
	}
	return err
}

// resumeAlone does what unguard and goAlone do, at the first write after a restart, if no
// secondary was attached before it.
func (p *Primary) resumeAlone() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.resumed.Load() {
		return nil
	}
	if err := p.unguard(); err != nil {
		return err
	}
	if !p.used {
		p.resumed.Store(false)
		return nil
	}
	return p.goAlone()
}
