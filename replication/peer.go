package replication

import (
	"fmt"
	"sync/atomic"
)

// peer keeps what a primary knows of the copy of its secondary: its identity, the checkpoint up to
// which all writes are accounted for, and what it may lack. Its bitmaps may be used from
// any goroutine. intent and marks change with the whole disk locked, so that who holds a range may read them;
// base, run and instance are guarded by the mu of the Primary.
//
//	what has been written      is in
//	since the last Mark        epoch
//	before it, not Loaded yet  older
//	and is not forwarded       dirty
type peer struct {
	// dirty has the chunks that the secondary lacks and that Synchronise copies; writes to
	// them are not forwarded. A bit is clear only if the chunk is known to be there.
	dirty *Bitmap
	// epoch has the chunks that were written since the last Mark, and older those written
	// before it and after the last Mark that is Loaded. The secondary may undo both.
	epoch, older *Bitmap
	// copied has the chunks that Synchronise has copied since the last Loaded. They are
	// lost with the secondary's instance.
	copied *Bitmap

	changes changes // of either side, for a VerifyOnline, which reads without a lock

	marks  *Bitmap // chunks that an earlier process has left to be copied, unless the caller promises otherwise
	intent *intent // all of these on stable storage; nil: there is no place for it

	// base is the copy to which the bitmaps refer, and a checkpoint that it has. Start makes it run, and each Loaded
	// after that raises its epoch, both on stable storage too. Attach of another copy clears it here alone: the
	// marks on stable storage still have all that the copy of before may lack.
	base peerBase
	// run is the copy that was attached last, with the generation at that time and epoch 0, which
	// counts as soon as Loaded has said that the secondary has it, before Start. instance
	// is the secondary's process, which changes its name when it takes the copy back to its
	// last checkpoint. Attach changes both.
	run      peerBase
	instance ID
}

// changes counts the changes of a disk, so that a reader without a lock can tell whether the disk
// was changed meanwhile. Chunks whose numbers differ by a multiple of 64 share a count. The zero
// value is ready.
type changes [64]atomic.Uint32

// count counts a change of chunks that are locked, before it is made.
func (c *changes) count(off, n int64) {
	if n <= 0 {
		return
	}
	first, last := off/ChunkSize, (off+n-1)/ChunkSize
	for i := first; i <= min(last, first+int64(len(c))-1); i++ {
		c[i%int64(len(c))].Add(1)
	}
}

// of returns the counts of the chunks that [off, off+n) touches, n not being zero.
func (c *changes) of(off, n int64) (counts []uint32) {
	for i := off / ChunkSize; i <= (off+n-1)/ChunkSize; i++ {
		counts = append(counts, c[i%int64(len(c))].Load())
	}
	return counts
}

func newPeer(size int64) peer {
	return peer{dirty: NewBitmap(size), epoch: NewBitmap(size), older: NewBitmap(size), copied: NewBitmap(size)}
}

// begin records a write that is about to be made.
func (r *peer) begin(off, n int64) error {
	r.changes.count(off, n)
	r.epoch.Set(off, n)
	if r.intent == nil {
		return nil
	}
	return r.intent.ensure(off, n)
}

// copying records that chunks, which are locked, are about to be copied. Their dirty bits are
// cleared before that: if it fails, perhaps at once, they are set again.
func (r *peer) copying(off, n int64) {
	r.changes.count(off, n)
	r.copied.Set(off, n)
	r.dirty.Clear(off, n)
}

// marked ends an epoch. The whole disk is locked.
func (r *peer) marked() {
	r.older.Or(r.epoch) // of the same size
	r.epoch.clearAll()
}

// loaded says that a checkpoint of the secondary has everything from before the last Mark.
func (r *peer) loaded() {
	r.older.clearAll()
	r.copied.clearAll()
}

// differs reports whether the secondary may not have all of a range.
func (r *peer) differs(off, n int64) bool {
	return r.dirty.Any(off, n) || r.epoch.Any(off, n) || r.older.Any(off, n) || r.copied.Any(off, n)
}

// detached makes dirty the chunks that the secondary may undo. The whole disk is locked.
func (r *peer) detached() {
	for _, b := range []*Bitmap{r.epoch, r.older} {
		r.dirty.Or(b) // of the same size
		b.clearAll()
	}
}

// restarted makes dirty the chunks that were lost with the secondary's instance.
func (r *peer) restarted() {
	r.dirty.Or(r.copied)
	r.copied.clearAll()
}

// all makes everything dirty.
func (r *peer) all() {
	r.dirty.Set(0, r.dirty.bits.Load().size)
	r.copied.clearAll()
}

// How much a secondary's copy lacks.
const (
	lacksNothing = iota // the caller promises that
	lacksDirty          // what the bitmaps say
	lacksLost           // that, and what was written after its last checkpoint
	lacksAll
)

// lacks returns how much the copy theirs, a secondary's, lacks of the copy ours, or why
// it must not be overwritten. known is false if the secondary does not tell its
// identity.
func (r *peer) lacks(ours, theirs Identity, known, promised, overwrite bool) (int, error) {
	overwrite = overwrite || theirs.Overwrite
	all := func(err error, why string) (int, error) {
		if overwrite {
			return lacksAll, nil
		}
		return 0, fmt.Errorf("%w: %s; ours is %v, the secondary's %v; it is overwritten only if the configuration says Overwrite", err, why, ours, theirs)
	}
	switch {
	case !known || theirs.Disk == (ID{}):
		if promised {
			return lacksNothing, nil
		}
		return all(ErrIdentity, "the secondary does not know of which disk its copy is")
	case theirs.Disk != ours.Disk:
		return all(ErrIdentity, "the secondary's copy is of another disk")
	case !ours.descends(theirs) && theirs.descends(ours):
		return all(ErrOutdated, "the secondary's copy is newer")
	case !ours.descends(theirs):
		return all(ErrDiverged, whyDiverged(ours, theirs))
	case theirs.Writes:
		return lacksAll, nil // its guest may have written anywhere
	}
	of := func(b peerBase) bool {
		switch {
		case b.Copy == (ID{}) || b.Copy != theirs.Copy:
			return false
		case theirs.State == CopyInconsistent:
			// It may have adopted a later generation without beginning a run in it.
			return theirs.Generation == b.Generation || theirs.Generation.Number > b.Generation.Number
		}
		return theirs.Generation == b.Generation && theirs.Epoch >= b.Epoch
	}
	switch {
	case of(r.run) && r.instance == theirs.instance:
		return lacksDirty, nil
	case of(r.run), of(r.base):
		return lacksLost, nil
	}
	return lacksAll, nil
}
