// Package event names the facts that a COLO session reports and carries them
// from the session to whoever wants to know.
//
// Each fact is a type ([COLOExit], [CheckpointCommit], ...) whose JSON is the
// data of the QMP event of that name. A session publishes it on a [Bus]; a
// subscriber is a function that the publisher calls. There is no queue and no
// goroutine in between, so nothing is lost and nothing has to be closed, and a
// subscriber that is slow slows the checkpoint down. One that does not return stops the
// checkpoints, and the guest's output waits for as long: no time of a session bounds that. One that
// cannot promise to be quick puts a [Buffered] in front of itself.
//
// [Record] is an event with its time. It marshals to the envelope that QEMU
// prints on its monitor, so a management layer that reads QMP events reads
// these; [Decode] goes the other way.
//
// Disks have their own: [DiskBroken], [DiskFailed], [DiskStalled], and [DiskSyncProgress] until
// [DiskSynchronised] or, for a secondary that comes back,
// [DiskResynchronised].
//
// Compared networks have their own too: [NetworkDiverged] names the flow that differs,
// and [NetworkFlowApart] and [NetworkFlowTogether] tell which flows are not compared for
// a while, since the guests never agree about them.
//
// Other parts of the library publish more: package replication the [BlockIOError] of a request that
// has failed, package protect the [JobStatusChange] of its job. Events of QEMU that nothing here
// publishes have types too ([BlockJobReady], [DeviceDeleted], ...), for a host that watches QEMUs or
// offers a monitor of its own. An [Order] checks that events come in an order that QEMU can produce; a
// [Limiter] limits how often an event is published. Neither has a clock or a goroutine:
// the caller tells them events and times.
//
// The bus reports; it never controls.
package event
