//go:build unix

// Package signals has the signals that a Unix has and other systems lack, so that what
// sends or takes them compiles there.
package signals

import "syscall"

const (
	Stop     = syscall.SIGSTOP // stops a process, which cannot refuse
	Continue = syscall.SIGCONT // lets a stopped process run on
	User1    = syscall.SIGUSR1 // means what the process that takes it says
	User2    = syscall.SIGUSR2 // does so too
	BadCall  = syscall.SIGSYS  // ends a process that made a system call which it must not make
)
