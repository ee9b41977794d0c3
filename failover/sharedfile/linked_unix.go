//go:build unix

package sharedfile

import (
	"os"
	"syscall"
)

// linked reports whether a file has two names. It opens the file, since an NFS client asks
// the server then, and otherwise may answer with what it knew before the second one.
func linked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 2
}
