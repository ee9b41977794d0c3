// Package standby keeps the state of a guest that this host cannot run: the
// secondary of a primary whose devices are not known here, such as a QEMU's.
//
// It is for operators of stock QEMUs; a VMM that knows its devices wants package
// colo/protect.
//
// A [Copy] takes the place of a secondary's guest in a session of package colo.
// It holds one image of the primary's memory, learned from the stream's block
// list, and the device sections as they came. There is no virtual machine, and
// so nothing to pause, to roll back or to diverge; a standby costs the guest's
// memory, the largest checkpoint, and no processor.
//
//	guest := standby.New(standby.Config{})
//	s, err := colo.NewSecondary(conn, colo.SecondaryConfig{
//		VM: guest, Loader: guest, RAM: guest,
//	})
//	err = s.Run(ctx)              // checkpoint after checkpoint
//	err = guest.Put(w)            // a migration stream of the last one
//
// [Copy.Put] writes what a QEMU takes with -incoming: the guest goes on there,
// exactly where its last whole checkpoint was. [Copy.NewLazyReplica] makes it the
// source of a postcopy migration: a QEMU runs it at once, and its memory follows.
// [Copy.NewReplica] makes it the guest of a primary instead, to protect it with
// another secondary.
//
// # All or nothing
//
// The pages of a checkpoint are staged beside the image; XBZRLE differences are
// applied to a staged copy. Device sections are cut, and so checked, before the
// checkpoint is acknowledged. A commit only says that what is staged counts, so
// it takes the same moment for one page and for a million; the pages move into
// the image afterwards, while the primary's guest runs ([Copy.Settle]). What is
// left of a checkpoint that broke off is dropped.
//
// # Who goes on
//
// A stock QEMU neither gives a lost peer up by itself nor tells a crash from a
// planned end. Beside it, on its host, stands a guardian, which holds its monitor;
// what it does is decided by a [Guard], and whether this host may go on with its
// copy by a [Takeover]. Both are pure. The guardian and the standby talk over a
// [Control]. examples/lockstep-qemu is a guardian and a standby made of them.
//
// # Limits
//
// The primary must send a description of its devices (every QEMU machine does
// unless suppress-vmdesc=on), and memory must be its only live section. With
// the capability x-ignore-shared memory is not in the stream at all, and the
// stream is refused; so is a file of mapped-ram.
//
// A device that its description does not fit is kept as bytes, as its footers cut
// it. What the streams of an old machine type lack, footers or a configuration,
// those that Put writes lack too.
package standby
