// Package output lets a program say that what it printed was not written, as
// when a file system is full: a script that reads the output is not to take a part of it
// for all.
package output

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Outlive has the program outlive whoever reads what it prints, such as a logger behind a
// pipe: from then on a write that nobody can read fails, where the kernel would kill the
// program by SIGPIPE, and with it the guest that it runs, or the one that it keeps for another
// host. What the program starts later is killed by that signal as ever. A program that does
// nothing but print does not call it.
func Outlive() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// A Writer passes on what is written to it, and keeps the first error. It may be used
// from any goroutine.
type Writer struct {
	w  io.Writer
	mu sync.Mutex

	err error
}

// New returns a Writer to w.
func New(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes b.
func (w *Writer) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			w.err = err
		}
	}
	return n, err
}

// Status makes an exit status of a program's own. Where that is 0, but something could
// not be written, it says so on stderr, in the program's name, and returns 1.
func (w *Writer) Status(own int, program string, stderr io.Writer) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if own != 0 || w.err == nil {
		return own
	}
	fmt.Fprintf(stderr, "%s: not all of the output was written: %v\n", program, w.err)
	return 1
}
