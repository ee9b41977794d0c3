//go:build unix

package qemutest

import "syscall"

// Freeze stops the process with SIGSTOP: it hangs, and its connections stay open.
func (v *VM) Freeze() { v.cmd.Process.Signal(syscall.SIGSTOP) }
