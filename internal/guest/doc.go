// Package guest is the flat test program: a guest without an operating system
// whose every round depends on all of its state so far, so that whoever sees
// its output can tell any corruption of it.
//
// The program (guest.S, assembled into guest.bin) is entered at CPL3 in 64-bit
// mode, one load loop per vCPU; vCPUs share nothing. In round n it touches some
// pages of its working set, carries an SSE double and an integer that are never
// in memory, takes in the time-stamp counter in a given share of the rounds,
// mixes everything into a running hash h, writes (n, h) to a ring in guest
// memory, and emits the UDP frame (vCPU, n, h, t) through a paravirtual port:
// it reads PortStatus until bit 0 is set, then writes the address of its frame
// buffer to PortEmit.
//
// A guest with a disk writes a block to it every so many rounds, before that
// round's frame: where it goes and what is in it depends on h, n and the working
// set. It writes the address of a descriptor to PortDisk until the device has
// said, in the descriptor, that this is done.
//
// A vCPU also takes input, when it asks whether it may send: (m, v) is mixed into
// a hash y of all the input so far if m is the next number, and answered with a
// frame (m, y, v) from a port of its own. The last one is answered again, any
// other is ignored, so that a client which repeats what is not answered learns in
// each answer all that the guest has taken. Nothing of a round depends on when, or
// whether, input comes.
//
// [Load] prepares guest memory, [Round] performs the same round in Go on the
// same memory (a guest for machines without KVM), and [Model] follows the
// history from the frames alone (the oracle of a client that only sees those).
package guest
