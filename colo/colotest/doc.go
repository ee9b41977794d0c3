// Package colotest helps to test programs that use package colo. It has a guest
// without a hypervisor, connections that break at a chosen operation, and the other
// parts that a session needs (a network, a disk, a witness), each of which records
// the calls that it gets.
//
// [TestVM] runs a host VMM's own implementation of colo.VM, ram.DirtyLog and
// its devices through what a session relies on.
//
// [VM] runs the rounds of this project's test program in Go. Each round
// depends on all of the guest's state so far and sends one frame, so a single
// byte that went missing in a checkpoint shows in every frame from then on. A
// [Ledger] has seen what the guests did and can therefore say whether one of
// them is in a state that was ever right; an [Oracle] sees only what left, as
// a client of the guest does.
//
// Everything here may be used in a bubble of testing/synctest.
package colotest
