package tied

import (
	"os/exec"
	"syscall"
)

// tie has the kernel kill the command's process when its parent ends (prctl(2), PR_SET_PDEATHSIG).
func tie(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
