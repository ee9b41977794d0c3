//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package cli

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// columns returns how wide the terminal is that w, or what is below an Output, writes to; 0 if that is not
// known.
func columns(w io.Writer) (n int) {
	if o, ok := w.(*Output); ok {
		w = o.w
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	c, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = c.Control(func(fd uintptr) {
		if size, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			n = int(size.Col)
		}
	})
	return n
}
