// Package job is what the protected Linux guest computes and tells, and what
// whoever listens to it expects.
//
// The guest's program (internal/linuxguest/jobs) and its client outside use the
// same definitions: Checksum gives the values of every pass over a piece of
// memory, with integers and with SSE's doubles; Record is what the guest
// reports; Chunk is the n-th piece of a stream that is known beforehand; Entry
// is a record of its log on disk. A client needs nothing of the guest's memory
// to tell a right guest from one that lost, repeated or mixed up anything.
package job
