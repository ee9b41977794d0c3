// Package nbd serves disks to, and uses disks of, other hosts by the NBD
// protocol: fixed newstyle negotiation, simple and structured replies, block
// status.
//
// Most hosts want package colo/protect, which uses it; this one is for those who
// replicate disks themselves, and for whoever needs an NBD server or client.
//
// NBD carries the writes of a primary to its secondary, and either end may be
// something else that speaks NBD, QEMU above all. [Server] exports disks; [Client]
// is a connection to one.
//
// An export may carry a generation in its name. Whoever takes over serves its disk under
// the next generation, so that a primary that does not know yet that it has been replaced
// is refused, rather than let write into the disk of its successor.
//
// Extended headers are not spoken: they are for requests of more than 4 GiB, which
// no guest makes and which a Mark would have to wait for, and peers that know them
// fall back to structured replies. A Client refuses with [ErrAlignment] a read, a
// write or zeroes that are no multiple of the minimum block of the server: it
// would have to write back the rest of a block, which another connection may have
// changed meanwhile. A replication.Primary may have such a server for its secondary: it
// has the rest of the block on its own disk. For another guest whose sectors are smaller
// than those of a disk, put a server in between that has the disk to itself, such as a
// [Server] over a replication.File.
//
// The protocol is that of doc/proto.md in github.com/NetworkBlockDevice/nbd;
// "proto" in comments refers to it.
package nbd
