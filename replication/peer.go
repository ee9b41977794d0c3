package replication

import (
	"fmt"
)

// peer is what a primary knows of the copy on its secondary: whose it is, up to
// which checkpoint it is accounted for, and what it may not have. Its bitmaps
// may be used from any goroutine; the rest belongs to the one that attaches and
// starts.
//
//	what has been written      is in
//	since the last Mark        epoch
//	before it, not Loaded yet  older
//	and is not forwarded       dirty
type peer struct {
	// dirty is what the secondary does not have: it is not forwarded but
	// copied by Synchronise. It has every bit set that is not known to be
	// clear.
	dirty *Bitmap
	// epoch is what has been written since the last Mark, older what was
	// written before it but since the last Mark that is Loaded. The secondary
	// may undo both.
	epoch, older *Bitmap
	// copied is what Synchronise has copied since the last Loaded. The
	// secondary loses that with its process.
	copied *Bitmap

	marks  *Bitmap // what a process before has left to be copied, unless the caller promises otherwise
	intent *intent // of all of them, on stable storage; nil: there is none

	// base is the copy that the bitmaps speak of, and a checkpoint that it
	// has. It changes when a run's first Loaded has come, and with each after.
	base peerBase
	// run is the copy that was attached last, under the generation that it was
	// attached with; instance is its process. They change in Attach.
	run      peerBase
	instance ID
}

func newPeer(size int64) peer {
	return peer{dirty: NewBitmap(size), epoch: NewBitmap(size), older: NewBitmap(size), copied: NewBitmap(size)}
}

// begin accounts for a write that is about to be made.
func (r *peer) begin(off, n int64) error {
	r.epoch.Set(off, n)
	if r.intent == nil {
		return nil
	}
	return r.intent.ensure(off, n)
}

// marked ends an epoch. The whole disk is locked.
func (r *peer) marked() {
	r.older.Or(r.epoch) // of the same size
	r.epoch.clearAll()
}

// loaded says that the secondary has everything of before the last Mark, in a
// checkpoint.
func (r *peer) loaded() {
	r.older.clearAll()
	r.copied.clearAll()
}

// differs reports whether the secondary may not have all of a range.
func (r *peer) differs(off, n int64) bool {
	return r.dirty.Any(off, n) || r.epoch.Any(off, n) || r.older.Any(off, n) || r.copied.Any(off, n)
}

// detached makes dirty what the secondary may undo. The whole disk is locked.
func (r *peer) detached() {
	for _, b := range []*Bitmap{r.epoch, r.older} {
		r.dirty.Or(b) // of the same size
		b.clearAll()
	}
}

// restarted makes dirty what the secondary has lost with its process.
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
	lacksLost           // and what it had not made a checkpoint of
	lacksAll
)

// lacks decides what a secondary whose copy is theirs lacks, or that it must
// not be overwritten. known is false if the secondary does not say who it is.
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
		return all(ErrDiverged, "both sides have gone on alone")
	case theirs.Writes:
		return lacksAll, nil // whatever its guest has written, nobody here knows
	}
	of := func(b peerBase) bool {
		switch {
		case b.Copy == (ID{}) || b.Copy != theirs.Copy:
			return false
		case theirs.State == CopyInconsistent:
			// It may have adopted a later generation, of which no run has
			// begun.
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
