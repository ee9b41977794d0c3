// Package colotest is for the tests of whoever uses package colo: a guest
// without a hypervisor, connections that break where they are told, and the
// parts that a session needs around it (a network, a disk, a witness), each
// recording what was asked of it.
//
// [TestVM] runs a host VMM's own implementation of colo.VM, ram.DirtyLog and
// its devices through what a session relies on.
//
// [Guest] runs the rounds of this project's test program in Go. Each round
// depends on all of the guest's state so far and sends one frame, so a single
// byte that went missing in a checkpoint shows in every frame from then on. A
// [Ledger] has seen what the guests did and can therefore say whether one of
// them is in a state that was ever right; an [Oracle] sees only what left, as
// a client of the guest does.
//
// Everything here may be used in a bubble of testing/synctest.
package colotest
