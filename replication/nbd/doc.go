// Package nbd serves disks to, and uses disks of, other hosts by the NBD
// protocol: fixed newstyle negotiation, simple and structured replies, block
// status.
//
// It is what carries the writes of a primary to its secondary, and either end
// may be something else that speaks NBD, QEMU above all. [Server] exports
// disks; [Client] is a connection to one.
//
// An export may carry a generation in its name. Whoever takes over serves his
// disk under the next generation, so that a primary that does not know yet
// that it has been replaced is refused, rather than let write into the disk
// of its successor.
//
// What is known of the bytes of an export besides their values is told by block
// status, in a [Context] for each kind of knowledge: where the disk has holes
// ([ContextAllocation]), so that a copy of a sparse disk takes what is in it
// and not its size, and whatever the owner of the export adds, such as a
// primary's bitmap ([ContextDirty]). Both sides have it: a server fills it, and
// [Client.Extents] and [Client.Status] ask for it.
//
// The protocol is that of doc/proto.md in github.com/NetworkBlockDevice/nbd;
// "proto" in comments refers to it.
package nbd
