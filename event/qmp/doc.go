// Package qmp serves a QMP monitor as QEMU 7.2 does, so that programs which
// steer QEMUs can steer any host. It also has a client, for the monitor of a QEMU or one
// that this package serves.
//
// A host makes a [Commands], adds what it can do ([RegisterMachine],
// [RegisterCOLO], [RegisterJobs], ..., and its own with [Register]), and gives
// it to a [Server] with the bus whose events clients see. A command that was not added is
// refused with the error that QEMU gives for an unknown command, and query-commands does
// not list it.
//
//	var c qmp.Commands
//	qmp.RegisterMachine(&c, vm)
//	s := qmp.Server{Commands: &c, Bus: bus}
//	l, err := qmp.Listen("unix:/run/guest.sock")
//	...
//	err = s.Serve(ctx, l)
//
// A monitor may do all that its commands can, and asks nobody for a password: it
// belongs on a Unix socket or a loopback address. There a browser can reach it too, for
// any page that it shows; a client that begins as a browser does (with GET, HEAD, POST or
// OPTIONS) is closed.
//
// Answers equal those of QEMU byte for byte where both have the command: the order of
// members, the classes and texts of errors, the answers to malformed input. Three things
// differ: many clients are served at a time, the memory that a client can take is bounded
// (see the fields of [Server]), and browsers are refused.
package qmp
