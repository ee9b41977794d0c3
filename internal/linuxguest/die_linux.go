package linuxguest

import (
	"os/exec"
	"syscall"
)

// dieWithUs sees to it that a machine does not outlive this process, however that
// ends (prctl(2), PR_SET_PDEATHSIG).
func dieWithUs(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
