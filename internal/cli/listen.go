package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Listening returns the error with which listening at the address of a flag has failed: it begins with
// name, which says which flag that is, and says what to do about the usual reasons.
func Listening(name string, err error) error {
	for _, reason := range []struct {
		is   error
		todo string
	}{
		{syscall.EADDRINUSE, "another process listens there: end it, or give another address"},
		{syscall.EADDRNOTAVAIL, "this host does not have the address: give one of its own"},
		{fs.ErrPermission, "this user may not: give a port from 1024 on, or a path in a directory that may be written to"},
		{fs.ErrNotExist, "make the directory first"},
	} {
		if errors.Is(err, reason.is) {
			return fmt.Errorf("%s: %w (%s)", name, err, reason.todo)
		}
	}
	return fmt.Errorf("%s: %w", name, err)
}
