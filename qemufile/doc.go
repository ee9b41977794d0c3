// Package qemufile has the primitives of a QEMU migration stream: big-endian
// integers, counted strings and raw bytes over any [io.Reader] or [io.Writer].
//
// Most hosts want package colo/protect, and of streams package vmstate; this one is for
// those who read or write a stream's bytes themselves.
//
// Both directions keep the first error they meet. A caller puts or reads a
// whole run of values and asks once, with Err or Flush; after an error reads
// give zero values, puts go nowhere, and nothing panics. The errors of a
// [Reader] and of a [Writer] say where in the stream they arose (see [Error]).
//
// # Memory
//
// A guest's memory goes through these types at the speed of the link, so pages
// are moved as rarely as possible. [Writer.WriteRef] queues the caller's memory
// and [Writer.Flush] hands everything queued to the socket in one vectored
// write, so that a page is not copied on its way out; for a destination without
// vectored writes, such as a TLS connection, pages are gathered in a buffer. A
// [Reader] reads ahead into a buffer that stays in the processor's cache and
// copies a page once, to its place; long reads go straight there. Neither
// allocates once it is made.
//
// # Lifetime
//
// A Reader reads ahead. Whoever shares a connection between several layers
// (COLO messages, sections, pages) gives them all the same Reader and the same
// Writer, which live as long as the connection. Each belongs to one goroutine
// at a time; one goroutine may use the Reader while another uses the Writer.
package qemufile
