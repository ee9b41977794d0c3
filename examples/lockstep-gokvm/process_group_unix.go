//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// together has the end of a command's context end what it has started, too.
func together(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
