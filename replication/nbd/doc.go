// Package nbd serves disks to, and uses disks of, other hosts by the NBD
// protocol: fixed newstyle negotiation, simple replies.
//
// Most hosts want package colo/protect, which uses it; this one is for those who
// replicate disks themselves, and for whoever needs an NBD server or client.
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
// The protocol is that of doc/proto.md in github.com/NetworkBlockDevice/nbd;
// "proto" in comments refers to it.
package nbd
