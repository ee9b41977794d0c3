package linuxguest

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// An Archive writes an initial RAM disk: a cpio archive of the newc form
// (Documentation/driver-api/early-userspace/buffer-format.rst of Linux). The
// first error sticks, and Close returns it. Archives may be concatenated; a
// kernel unpacks one after the other.
type Archive struct {
	w    io.Writer
	ino  int
	made map[string]bool // the directories that are in the archive
	err  error
}

// NewArchive returns an Archive on w.
func NewArchive(w io.Writer) *Archive { return &Archive{w: w, made: make(map[string]bool)} }

// Modes of an entry, as in stat(2).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

func (a *Archive) entry(name string, mode uint32, data []byte, major, minor int) {
	if a.err != nil {
		return
	}
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	pad := func(n int) string { return strings.Repeat("\x00", -n&3) }
	for _, p := range [][]byte{[]byte(head + pad(len(head))), data, []byte(pad(len(data)))} {
		if _, err := a.w.Write(p); err != nil {
			a.err = err
			return
		}
	}
}

// dirs makes the directories above name.
func (a *Archive) dirs(name string) {
	for i := range len(name) {
		if name[i] == '/' {
			a.Dir(name[:i])
		}
	}
}

// Dir adds a directory, if it is not there yet. Names begin without a slash.
func (a *Archive) Dir(name string) {
	if a.made[name] {
		return
	}
	a.made[name] = true
	a.dirs(name)
	a.entry(name, modeDir|0o755, nil, 0, 0)
}

// File adds an executable file.
func (a *Archive) File(name string, data []byte) {
	a.dirs(name)
	a.entry(name, modeFile|0o755, data, 0, 0)
}

// Copy adds a file of the host.
func (a *Archive) Copy(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.File(name, data)
}

// Console adds /dev/console, without which init has no standard output.
func (a *Archive) Console() {
	a.dirs("dev/console")
	a.entry("dev/console", modeChar|0o600, nil, 5, 1)
}

// Close ends the archive; it does not close what it was written to.
func (a *Archive) Close() error {
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}
