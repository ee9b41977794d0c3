package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestAFileThatCannotBeOpenedIsToldWithItsFlagAndWhatToDo(t *testing.T) {
	for _, c := range []struct {
		missing string
		err     error
		want    string
	}{
		{"", &fs.PathError{Op: "mkdir", Path: "a/b", Err: syscall.ENOENT}, "make the directory that it is in first"},
		{"make it", fmt.Errorf("the image: %w", &fs.PathError{Op: "open", Path: "a", Err: syscall.ENOENT}), "make it"},
		{"", &fs.PathError{Op: "open", Path: "a", Err: syscall.EISDIR}, "it is a directory: give a file"},
		{"", &fs.PathError{Op: "open", Path: "a", Err: syscall.ENOTDIR}, "it is a file, or in one: give a directory, or a path in one"},
		{"", &fs.PathError{Op: "open", Path: "a", Err: syscall.EROFS}, "its file system takes no writes: give a path in one that does, or mount it so"},
		{"", &fs.PathError{Op: "open", Path: "a", Err: syscall.ENOSPC}, "its file system is full: make room, or give a path in another"},
		{"", &fs.PathError{Op: "open", Path: "a", Err: syscall.EACCES}, "this user may not: give a path that this user may read and write"},
		{"", errors.New("something else"), ""},
	} {
		want := "-flag: " + c.err.Error()
		if c.want != "" {
			want += " (" + c.want + ")"
		}
		if got := Opening("-flag", c.missing, c.err); got.Error() != want || !errors.Is(got, c.err) {
			t.Errorf("%v\nwant %v", got, want)
		}
	}
}
