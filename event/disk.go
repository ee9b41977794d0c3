package event

import "time"

// Only this library has events of a replicated disk. QEMU's block/replication.c
// reports nothing, but for the error that query-xen-replication-status returns.

// DiskBroken says that a replicated disk has failed, and takes part in no
// checkpoint any more. On a primary, writes have not reached the secondary,
// until they are synchronised again. On a secondary, a write of the primary,
// its pre-image, a checkpoint or the commit of a failover has failed.
type DiskBroken struct {
	Mode      Mode   `json:"mode"`           // the side that has noticed
	Disk      string `json:"disk,omitempty"` // its name, if it was given one
	Operation string `json:"operation"`      // "write", "flush", "connection", ...: see replication.BrokenError
	Offset    int64  `json:"offset"`         // where on the disk, in bytes
	Length    int64  `json:"length"`         // of what was lost, in bytes; 0: not one range
	Error     string `json:"error"`
}

// Name returns "DISK_BROKEN".
func (DiskBroken) Name() string { return "DISK_BROKEN" }

// DiskFailed says that the copy of a disk on this side must not be trusted any
// more: a sync of it failed, so that part of what was written may be gone, or it hangs, or the metadata
// file beside it could not be written. Each of the two is published once. Every later
// checkpoint of the disk fails, and after a failed sync every flush too. The copy on the
// other side, in the state of the last checkpoint, is the good one.
type DiskFailed struct {
	Mode      Mode   `json:"mode"`           // the side whose disk it is
	Disk      string `json:"disk,omitempty"` // its name, if it was given one
	Operation string `json:"operation"`      // "flush" or "metadata"; of a disk that hangs, what hangs: see replication.HungError
	Error     string `json:"error"`
}

// Name returns "DISK_FAILED".
func (DiskFailed) Name() string { return "DISK_FAILED" }

// DiskStalled says that a disk does not answer, and, later, that it does again. It is
// published once when a request has been waited for longer than is good, and once, with
// Ended, when nothing has been waited for that long any more. Nothing is decided by it.
type DiskStalled struct {
	Mode  Mode   `json:"mode"`            // the side that waits
	Guest string `json:"guest,omitempty"` // whose disk it is
	Disk  string `json:"disk,omitempty"`  // its name, if it was given one
	// Host is the name of the host whose disk does not answer, as an arbiter and an operator know it:
	// of this host, or of the one that it protects the guest with, of which the storage or the way
	// there may be late. With Ended it is what was told first.
	Host string `json:"host,omitempty"`
	// Operation is what is waited for: "read", "write", "flush", "zero" or "trim" of the
	// guest; "prepare", "mark", "loaded" or "checkpoint" of a checkpoint; "start" or "stop" of
	// a session, with which a takeover ends it too; "generation" where the disk is to record of
	// which generation it is; "grow" where it is to become longer. With Ended, what was waited for first. A primary's "mark"
	// and "loaded" wait for the disk of the other host too, and may be late because of that alone.
	Operation string `json:"operation"`
	WaitedNS  int64  `json:"waited-ns"` // since that was asked for, nanoseconds
	Ended     bool   `json:"ended"`     // it is not waited for any more
}

// Name returns "DISK_STALLED".
func (DiskStalled) Name() string { return "DISK_STALLED" }

// DiskSyncProgress says how far a primary has copied its disk to the secondary.
type DiskSyncProgress struct {
	Disk      string    `json:"disk,omitempty"`
	Phase     SyncPhase `json:"phase,omitempty"` // empty in a line that has none
	Total     int64     `json:"total"`           // what was to be compared or sent at the beginning, in bytes
	Copied    int64     `json:"copied"`          // bytes of Total that have been sent
	Same      int64     `json:"same"`            // bytes of Total that need not be sent, since their checksums are equal
	Remaining int64     `json:"remaining"`       // bytes of Total that are still to be compared or sent
	// Rate is how fast Remaining has shrunk since the beginning, in bytes per
	// second; 0: not known yet.
	Rate      int64 `json:"rate"`
	ElapsedNS int64 `json:"elapsed-ns"` // since the beginning, nanoseconds
}

// Name returns "DISK_SYNC_PROGRESS".
func (DiskSyncProgress) Name() string { return "DISK_SYNC_PROGRESS" }

// Left estimates how long the rest will take; 0: not known yet.
func (p DiskSyncProgress) Left() time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(p.Remaining) / float64(p.Rate) * float64(time.Second))
}

// DiskSynchronised says that the secondary has, for the first time, a stable
// copy of all of a primary's disk.
type DiskSynchronised struct {
	Disk      string `json:"disk,omitempty"`
	Copied    int64  `json:"copied"`     // what was sent, in bytes
	Same      int64  `json:"same"`       // what need not be sent, since it was equal
	ElapsedNS int64  `json:"elapsed-ns"` // of this attempt, nanoseconds
}

// Name returns "DISK_SYNCHRONISED".
func (DiskSynchronised) Name() string { return "DISK_SYNCHRONISED" }

// DiskResynchronised says that the secondary has a stable copy again: what it had
// missed since an earlier copy has been sent. It ends the state that a DiskBroken
// reported.
type DiskResynchronised DiskSynchronised

// Name returns "DISK_RESYNCHRONISED".
func (DiskResynchronised) Name() string { return "DISK_RESYNCHRONISED" }

// DiskOverlayHalfFull says that one of a secondary's overlays has taken half
// of its bound, and that a checkpoint, which empties it, is asked for. It is
// published once in an epoch, by the secondary, and by a primary that knows how
// much room its secondary has.
type DiskOverlayHalfFull struct {
	Disk    string `json:"disk,omitempty"`
	Overlay string `json:"overlay"` // "active", the guest's own writes, or "hidden", pre-images
	Epoch   uint64 `json:"epoch"`   // of the last checkpoint
	Bytes   int64  `json:"bytes"`   // what the overlay takes
	Bound   int64  `json:"bound"`   // and may take, in bytes
}

// Name returns "DISK_OVERLAY_HALF_FULL".
func (DiskOverlayHalfFull) Name() string { return "DISK_OVERLAY_HALF_FULL" }

// DiskOverlayFull says that a write of a guest waits for a checkpoint, since an overlay
// of the secondary has no room. A write of the primary's guest waits for room for the
// data that it replaces, for as long as an answer of the secondary may take; then the
// write is made, and the secondary is lost. A write of the secondary's guest waits for
// room for its own data, and fails after a time.
type DiskOverlayFull struct {
	Mode    Mode   `json:"mode"` // the side whose guest waits
	Disk    string `json:"disk,omitempty"`
	Overlay string `json:"overlay"` // "hidden", pre-images, on a primary; "active", the guest's own writes, on a secondary
	Epoch   uint64 `json:"epoch"`   // of the last checkpoint
	Bytes   int64  `json:"bytes"`   // what the overlay takes, or more
	Bound   int64  `json:"bound"`   // and may take, in bytes
}

// Name returns "DISK_OVERLAY_FULL".
func (DiskOverlayFull) Name() string { return "DISK_OVERLAY_FULL" }

// DiskVerified says that both copies of a disk have been compared while the guest
// ran.
type DiskVerified struct {
	Disk      string `json:"disk,omitempty"`
	Compared  int64  `json:"compared"`  // how much was compared, in bytes
	Different int64  `json:"different"` // length of the chunks that differed
	Repaired  int64  `json:"repaired"`  // of those, what has been made the same
	Undecided int64  `json:"undecided"` // length of the chunks that the guest wrote too often to be compared
	ElapsedNS int64  `json:"elapsed-ns"`
}

// Name returns "DISK_VERIFIED".
func (DiskVerified) Name() string { return "DISK_VERIFIED" }
