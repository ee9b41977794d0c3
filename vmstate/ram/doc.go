// Package ram carries a guest's memory in the "ram" section of a migration
// stream, version 4, as QEMU's migration/ram.c does.
//
// Most hosts want package colo/protect, and of this one Block and DirtyLog; the rest is
// for those who steer a session themselves, or read streams.
//
// Memory is a list of blocks ([Block]), which have names. In the stream it is records: one for a
// page, with the page's offset in its block, after a list of the blocks that
// comes once. A page that is all zeros, or that the peer has in an earlier
// state, takes a shorter record. A page may come again; the last one counts.
//
// A [Saver] is the primary's side. It knows from a [DirtyLog] which pages the
// guest wrote, and sends them three ways: SaveIterate, straight from the memory
// of the running guest; SaveComplete, from the memory of the paused guest; or
// Capture, which copies what is dirty in the paused guest into an arena, so that
// the guest can run on while SaveComplete sends the copy. In the arena a page
// stands right after its record's header, as in the stream: it is copied once
// while the guest waits, and sent in large pieces.
//
// A [Cache] is the secondary's side, and what makes a checkpoint all or nothing. It holds
// a copy of the primary's memory beside the guest's. What is received changes only the
// copy; Flush puts it into the guest's memory, and puts back what the secondary's guest,
// which ran meanwhile, dirtied itself; Discard forgets it. So the guest's memory is at
// every moment that of one checkpoint, and what the guest did since.
//
//	primary                                    secondary
//	-------                                    ---------
//	SaveSetup       block list            ->   LoadState
//	SaveIterate...  pages, guest running  ->   LoadState
//	SaveComplete    the rest              ->   LoadState, Flush
//	for each checkpoint:
//	  SaveIterate   (pages ahead)         ->   LoadState
//	  Capture       guest paused
//	  SaveComplete  guest running again   ->   LoadState, Flush
//
// A record that continues in the block of the record before does not name it.
// What came before is a matter of the connection: it outlives sections and
// checkpoints. Saver and Cache keep it, and a session on another connection
// begins with SaveSetup and [Cache.NewSession].
//
// A [Walker] reads the records for those who want to look at a stream rather
// than run a guest from it. Package multifd beside this one has QEMU's packets
// for memory on connections of its own.
//
// Memory of a running guest is read while it changes. That is inherent in a live
// migration and harmless: a page that changes is dirty again, and sent again.
// The memory should therefore not be Go memory that the race detector watches.
package ram
