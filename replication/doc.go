// Package replication keeps the disk of a protected guest in two copies that
// agree at every checkpoint.
//
// The guest on the primary writes through a [Primary]: the local disk, plus
// a forwarder that sends every write to the secondary host. The guest on the
// secondary reads and writes through a [Secondary]: what it wrote itself
// since the last checkpoint (the active overlay), over what the primary has
// meanwhile replaced (the hidden overlay, which holds pre-images), over the
// secondary disk, which the primary writes. So the secondary's guest sees a
// disk that stands still at the last checkpoint but for its own writes:
//
//	primary host                          secondary host
//
//	 guest                                 guest
//	   │                                     │
//	 Primary ── forwarded writes ──┐       active overlay    own writes
//	   │                           │         │ else
//	 local disk                    │       hidden overlay    pre-images
//	                               │         │ else
//	                               └─────► secondary disk
//
// At a checkpoint both overlays vanish at once and the secondary disk, which
// then equals the primary's, is what the guest sees. In a failover the
// overlays are copied down into the secondary disk instead: the primary's
// writes since the last checkpoint are undone, for the guest's memory is
// that of the last checkpoint, and its own writes since then are kept.
//
// The layering and its states are those of QEMU's block replication driver
// (block/replication.c), and either end may be a QEMU; where that driver
// loses an error or leaves a checkpoint half done, this package does not
// follow it. A QEMU primary does not forward discards, so that a trimmed range
// may differ between the two disks; its disks want discard=ignore.
//
// Overlays are in memory, bounded, or on stable storage in a [Journal]: with
// that a crash of the secondary host leaves, after recovery, exactly the disk
// of its last checkpoint. Each disk has its own; after a crash in the middle
// of a group's checkpoint the disks of one guest may be one epoch apart, which
// Recover tells, and the guest's memory is lost in any case.
//
// Package replication/nbd carries the writes.
package replication
