// Package qmp serves a QMP monitor as QEMU 7.2 does, so that programs which
// steer QEMUs steer any host, and is a client of monitors, QEMU's or this one.
//
// A host makes a [Commands], adds what it can do ([RegisterMachine],
// [RegisterCOLO], [RegisterJobs], ..., and its own with [Register]), and gives
// it to a [Server] with the bus whose events clients see. What was not added is
// not there: clients are told so in QEMU's words, and query-commands does not
// list it.
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
// any page that it shows; a client that begins with a request of HTTP is closed.
//
// Answers are QEMU's byte for byte where both have the command: the order of
// members, the classes and texts of errors, what malformed input leads to. What
// differs: many clients are served at a time, what one may take is bounded
// (see the fields of [Server]), and no browser is a client.
package qmp
