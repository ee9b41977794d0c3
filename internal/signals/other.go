//go:build !unix

// Package signals has the signals that a Unix has and other systems lack, so that what
// sends or takes them compiles there.
package signals

import "syscall"

// Numbers that no system has: none of these signals comes here, and to send one is an error.
const (
	Stop     = syscall.Signal(-1 - iota) // no signal here
	Continue                             // no signal here
	User1                                // no signal here
	User2                                // no signal here
	BadCall                              // no signal here
)
