// Package replication keeps the disk of a protected guest in two copies that
// agree at every checkpoint.
//
// Most hosts want package colo/protect and its Disk; this one is for those who steer a
// session themselves, and for disks without a guest.
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
// of its last checkpoint. Each disk has its own, and [RecoverGroup] brings the
// disks of one guest to the same checkpoint. The guest's memory is lost in any
// case.
//
// # What is stable
//
// A flush is answered when a sync has ended that began after the writes before the flush
// had; flushes share syncs. A sync that fails returns a [SyncError], and nothing that the
// disk answers is believed after that: every later flush, Mark and Checkpoint fails, and
// event.DiskFailed names the side and the disk. On a primary the guest goes on reading what
// the disk still has, and its flushes fail; the good copy is on the secondary, of the last
// checkpoint. Where there is none, or it is gone, the guest can be moved to a new secondary
// with the content that the disk still reads, see PrimaryConfig.Evacuate. Metadata that
// cannot be written is a [MetadataError], and ends the use of a copy in the same way,
// though its flushes may succeed: after a restart nobody could tell in what state the copy
// is. A write of metadata, of its bitmap or of a Journal for which there is no room (ENOSPC) is not
// final: what needed it fails, and the next attempt, of a guest's write or of a primary that
// comes back, succeeds once there is room.
//
// # Whose copy a disk is
//
// Each copy has an [Identity]: the guest's disk, which copy of it this is, the
// generation, the last epoch, and whether it is clean, inconsistent or outdated. It
// is in a file beside a raw image, see [Metadata], and in the superblock of a
// Journal, which is therefore never applied to another disk, nor to one that was changed
// since without it. Attach exchanges
// identities with the other side, over an [IdentityDisk] that is served beside the
// Export: a copy that was this disk's secondary gets what was written since its last
// checkpoint, also when the primary's process is another one, which knows from a
// write-intent bitmap; any other copy of the disk gets everything; and a copy that is
// blank, of no known disk, of another, newer, or has gone on by itself is refused,
// unless PrimaryConfig.Overwrite or SecondaryConfig.Overwrite permits it. A QEMU does
// not tell an identity, so its copy is unknown each time. [Newest] says which of two
// copies goes on after both hosts were down. Images and journals are locked while
// they are open.
//
// With a Journal, a copy that is being synchronised again remains what it was: until
// the next Start or Checkpoint, a crash, or Stop without failover, brings back the
// last checkpoint. Without one, it is durably inconsistent meanwhile.
//
// # What a VMM does
//
// A virtual disk's requests become calls of a [Disk], from any goroutine: reads
// ReadAt, writes WriteAt, a flush Sync, a discard Trim, write-zeroes
// WriteZeroes, a write with FUA WriteFUA, where there is one. [OpenFile] makes a
// Disk of an image or a block device; anything else with the four methods will
// do. On either host the device is given a [Primary] or a [Secondary] over it,
// which are Disks themselves, in the place of the bare one.
//
// On the primary, NewPrimary comes with the disk: unprotected, it passes everything
// on, and keeps account. The host calls Run on a goroutine. To protect the guest,
// which may be running,
//
//   - Attach a connection to the secondary's export (nbd.Dial), with one to its
//     IdentityDisk ([WithIdentity]);
//   - [Preflight], if the copies are said to be equal (InSync), or Synchronise, which
//     takes as long as copying the disk does;
//   - hand a [Group] of all its disks to the session (colo.PrimaryConfig.Disks),
//     which starts, marks and stops them.
//
// On the secondary, NewSecondary comes before the primary connects; its Export
// is served (nbd.Server), under a generation of its own for each primary, and
// beside it [Sums] of it, and its [IdentityDisk]. A Group of the disks is the session's
// (colo.SecondaryConfig.Disks). Before a failover the export is closed, so that
// nothing of a primary that is only slow is under way; what is late all the
// same is refused.
//
// A write to a Primary may wait: for room among what is on its way, at most for
// ForwarderConfig.Timeout; once HoldBytes are held after a mark, for the
// secondary to have loaded it; and if the secondary has no room for what the write
// replaces, as long, for the next Mark. Reads never do. A device that calls
// WriteAt on the goroutine of a vCPU keeps its VM from being paused meanwhile;
// Primary.Cut, which a session calls when it gives the secondary up, lets every
// writer go on. A write to a Secondary waits, at most for FullTimeout, for the
// checkpoint that makes room in its active overlay; it does not while the guest is
// being paused, when Secondary.Drain, which a session calls, lets it take what is
// spare, or fails it. Bounds are best as large as the disk, if that is small, or as what a guest writes
// in some of the intervals between checkpoints; zeroes take none of it, and in a Journal
// little.
//
// A pause need not wait for requests that are under way. They are then part of the
// device's state, and a load waits until all calls have returned: what is written
// behind the Checkpoint would be on the disk of a guest that has not written it. They
// are made again when the guest is resumed, and not in the load, which comes before the
// Checkpoint that forgets what was written here.
//
// event.DiskOverlayHalfFull says, on either side, when a checkpoint is due early,
// and event.DiskOverlayFull that a write waits for one.
//
// A [Gate] holds the answers to the guest's writes and flushes while this side may
// not let anything out; Fence ends the guest for good. VerifyOnline compares both
// copies while the guest runs, and Info has the figures of a disk.
//
// When the other host is lost, the session stops the Group with failover, and
// the device goes on with what it has. A Primary can be given the next secondary
// as it was given the first, and copies only what that has missed. A Secondary
// that took over is done; the disk below it is the guest's, and becomes that of
// a new Primary over the Secondary, or over the disk itself after a pause of the
// guest.
//
// What happens is told on an event.Bus: event.DiskBroken,
// event.DiskSyncProgress and the others of their kind.
//
// Package replication/nbd carries the writes.
package replication
