//go:build !unix

// Package signals has the signals that a Unix has and other systems lack, so that what
// sends or takes them compiles there.
package signals

import "syscall"

// None of them comes here, and to send one is an error.
const (
	Stop = syscall.Signal(-1 - iota)
	Continue
	User1
	User2
	BadCall
)
