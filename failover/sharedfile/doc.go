// Package sharedfile keeps an arbiter's record in a directory that both hosts of
// a pair reach: of one machine, or of a file system that they share. It is the
// arbiter that needs nothing else.
//
//	arbiter, err := sharedfile.New("/shared/lockstep/db1")
//
// New makes the directory if it is not there, but not the directories above it: so a host on
// which the shared file system is not mounted gets an error, and does not decide alone. So choose
// a directory inside the shared file system, and not its mount point.
//
// # How it is written
//
// Each state of the record is a file of its own, named by its number, and a new
// one takes its place by link(2), which fails if that name is there: of two hosts
// that write at the same time one succeeds. A file is complete and on stable
// storage before it gets its name. No lock is held at any time, so a host that is
// stopped or killed in the middle of a write, wherever that is, keeps nobody from
// taking over. The newest files are kept, older ones removed.
//
// # What it survives and what not
//
// It survives processes that are killed or stopped at any point, the crash of a
// host, and the power cut of a storage that keeps what it has acknowledged. It
// does not survive the loss of the directory: whoever puts an old copy of it back
// gets refusals (failover.Record.Acquire), as long as no host asks that has a guest as old as
// that copy: that one would be granted it. See docs/operations.md.
//
// The file system must have link(2) that fails on an existing name for every
// host, as local file systems and NFS do, and must show a new name to the other
// host within a term, which NFS does when it is mounted with lookupcache=none or
// with attribute caching (actimeo) well below the term. A view that is late makes
// a takeover late or refuses a claim. It must not be later than 64 writes of the
// record, which at the usual three renewals in a term are 21 terms.
//
// Hosts that lose the storage can neither renew nor claim: the holder's output
// stops at the end of its term, and nobody takes over until one of them reaches
// it again. A call of a storage that waits for its server without an end (NFS
// that is not mounted soft) comes back no sooner, whatever its context. A job of
// colo/protect does not wait for it, but for the end of its Run: an operator's word
// counts at once.
package sharedfile
