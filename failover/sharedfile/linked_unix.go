//go:build unix

package sharedfile

import (
	"os"
	"syscall"
)

// linked reports whether a file has two names.
func linked(path string) bool {
	fi, err := os.Lstat(path)
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 2
}
