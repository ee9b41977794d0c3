// Package migrate moves a guest to another host while it runs, once and for good: a
// [Source] sends it, a [Destination] takes it. Either side may be a QEMU.
//
// # Precopy and postcopy
//
// In precopy, memory is sent while the guest runs, pass after pass; what is left then, and
// the devices, is sent while it stands still, and it runs on the other side when all is
// there. A guest that writes faster than the link carries never gets there.
//
// In postcopy it goes to the other side without the memory that is left: it stands still only
// while the devices are sent, however large it is, and memory that it touches is sent before
// the rest ([ram.LazySaver], [ram.Lazy]). A Source begins with precopy passes and changes to
// postcopy after SourceConfig.PostcopyAfter of them, if it may.
//
//	source                                      destination
//	------                                      -----------
//	header, configuration                  ->
//	OPEN_RETURN_PATH, PING 1               ->   PONG
//	POSTCOPY_ADVISE (if postcopy may come) ->
//	START ram, PART ram...                 ->   into memory
//	   precopy:                                    postcopy:
//	END ram, devices, EOF, description     ->   POSTCOPY_RAM_DISCARD..., PING 2
//	                                            PACKAGED: LISTEN, devices, PING 3, RUN
//	                                            PART ram...       <- REQ_PAGES
//	                                            END ram, EOF
//	                                       <-   SHUT 0
//
// What is asked for is sent before the rest. Of the rest, little more is on its way than keeps
// the link busy, so that an answer is not behind megabytes in the buffers of both hosts: PINGs
// in the stream tell the source what has come. A guest that misses page after page gets these
// alone, but for a piece of the rest now and then. A source that is a QEMU does none of
// this.
//
// # Channels
//
// In precopy, pages may go over [Channels] of their own beside the stream (QEMU's multifd),
// compressed or not: whichever channel is free takes the next packet, and at the end of each
// section all of them have said that they are done before the next begins. A channel that
// ends or lies ends the migration. Each side opens or accepts them after the main
// connection.
//
// # Who has the guest
//
// Until the devices are sent the guest belongs to the source: whatever fails, it runs on there,
// and never at the destination. From the moment that the first byte of the devices is written,
// the source runs it again only if the destination says that it failed (SHUT with an error,
// before it ran). If the source cannot know, Run returns [ErrUnknown], and somebody who can ask
// both sides has to find out. So the guest never runs on both.
//
// A QEMU that sends a guest in precopy does not wait for an operator. With the capability
// return-path it runs the guest again if the connection breaks before it has heard SHUT, though
// the guest may run at the destination by then. Without it, it takes the guest for moved when it has
// written all of it, and leaves it standing, though the connection may lose what was written.
// Not every stream of a QEMU is a move: with background-snapshot it runs its guest on. And the
// pages that a QEMU with postcopy-preempt sends over its second connection do not come here.
//
// # A connection that breaks
//
// In precopy it ends the migration. In postcopy each side has a part of the guest, and asks
// its Reconnect for another connection, any number of times: the destination says what it
// has (RECV_BITMAP), the source sends the rest (POSTCOPY_RESUME, RESUME_ACK). The guest runs
// meanwhile, but for what waits for memory.
package migrate
