package replication

import "context"

// Replicator is one disk, seen by the checkpoint protocol. Methods are called
// one at a time, by the goroutine that runs the session; Err may be called
// from any goroutine. The guest is paused during Checkpoint, Stop and, on the
// secondary, Start.
//
// It is the counterpart of QEMU's ReplicationOps (include/block/replication.h).
type Replicator interface {
	// Start begins replication. If it fails nothing has changed and it may
	// be called again.
	Start(ctx context.Context) error
	// Checkpoint makes the disk that of epoch: on the secondary the guest's
	// own writes since the last checkpoint and the pre-images vanish
	// together, or, if it fails, neither does. On the primary it only
	// reports what Err reports.
	Checkpoint(ctx context.Context, epoch uint64) error
	// Err returns what has gone wrong since Start, or nil. A Replicator
	// with an error must not be part of another checkpoint.
	Err() error
	// Stop ends replication. With failover this side goes on alone; without
	// it, a secondary's disk becomes what it was at the last checkpoint.
	// Stopping what was stopped does nothing.
	Stop(ctx context.Context, failover bool) error
}

// Marker is the disk of a primary. It has two more methods than a Replicator, for the
// moments of a checkpoint that matter to its writes.
type Marker interface {
	// Mark ends epoch. The guest is paused. When Mark returns, every write
	// so far is on the secondary's stable storage, and writes from now on
	// are not sent there until Loaded.
	Mark(ctx context.Context, epoch uint64) error
	// Loaded tells that the secondary runs epoch: writes held since its Mark
	// are sent.
	Loaded(ctx context.Context, epoch uint64) error
}

// Preparer is a Replicator that can do most of a checkpoint's work, and all that
// is likely to fail, beforehand. [Group] prepares every member before it checkpoints
// the first.
type Preparer interface {
	// Prepare does what Checkpoint of the same epoch would have to do first.
	// It changes nothing that the guest can see. Checkpoint or Stop must
	// follow; until then the primary's writes may be refused.
	Prepare(ctx context.Context, epoch uint64) error
}

// FailoverPreparer is a Replicator that can be told, for good, that a failover is
// coming before it is carried out. [Group] tells every member before it stops the
// first.
type FailoverPreparer interface {
	// PrepareFailover does what Stop with failover would have to do first.
	// That must follow. What fails here, fails there again.
	PrepareFailover(ctx context.Context) error
}

// Drainer is a Replicator in which writes of the guest may wait for the next
// checkpoint. That pauses the guest, and a vCPU that waits in a write would keep it
// from being paused, and the checkpoint from being made.
type Drainer interface {
	// Drain lets every write that waits for a checkpoint end, and until that
	// none begins to. It is called before the guest is paused. It does not
	// block, may be called from any goroutine, and calling it again does
	// nothing.
	Drain()
}

// Cutter is a Replicator in which the guest may wait for the other side: a write
// that cannot be answered keeps a vCPU, and with it the whole guest, from being
// paused.
type Cutter interface {
	// Cut ends the connection to the other side at once. Every write and
	// flush that waits for it goes on without the other side or fails, and
	// those that follow do not wait for it. It is called when a session has
	// lost its peer, before the guest is paused and before Stop. It does not
	// block, may be called from any goroutine, also while another method of
	// the same Replicator runs, and calling it again does nothing.
	Cut()
}
