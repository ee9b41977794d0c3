package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Opening returns the error with which a file or a directory that a flag names could not be opened or made: it
// begins with name, which says which flag that is, and says what to do about the usual reasons. missing
// is what to do where there is no such file; empty: its directory is to be made.
func Opening(name, missing string, err error) error {
	if missing == "" {
		missing = "make the directory that it is in first"
	}
	for _, reason := range []struct {
		is   error
		todo string
	}{
		{syscall.EISDIR, "it is a directory: give a file"},
		{syscall.ENOTDIR, "it is a file, or in one: give a directory, or a path in one"},
		{syscall.EROFS, "its file system takes no writes: give a path in one that does, or mount it so"},
		{syscall.ENOSPC, "its file system is full: make room, or give a path in another"},
		{fs.ErrPermission, "this user may not: give a path that this user may read and write"},
		{fs.ErrNotExist, missing},
	} {
		if errors.Is(err, reason.is) {
			return fmt.Errorf("%s: %w (%s)", name, err, reason.todo)
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}
