//go:build unix

package cli

import (
	"os/exec"
	"syscall"
)

// Together has the end of a command's context end what the command has started, too.
func Together(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
