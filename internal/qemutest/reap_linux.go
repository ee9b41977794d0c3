package qemutest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const reaps = true

// end kills the processes with a path in their arguments that no others have.
func end(path string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		line, _ := os.ReadFile(f)
		if !bytes.Contains(line, []byte(path)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
