//go:build unix

// Package signals has the signals that a Unix has and other systems lack, so that what
// sends or takes them compiles there.
package signals

import "syscall"

const (
	Stop     = syscall.SIGSTOP
	Continue = syscall.SIGCONT
	User1    = syscall.SIGUSR1
	User2    = syscall.SIGUSR2
	BadCall  = syscall.SIGSYS
)
