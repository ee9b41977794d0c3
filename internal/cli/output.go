package cli

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// OutliveReader has the program outlive whoever reads what it prints, such as a logger behind a
// pipe: from then on a write that nobody can read fails, where the kernel would kill the
// program by SIGPIPE, and with it the guest that it runs, or the one that it keeps for another
// host. What the program starts later is killed by that signal as ever. A program that does
// nothing but print does not call it.
func OutliveReader() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// An Output passes on what is written to it, and keeps the first error, as when a file system is
// full: a script that reads the output must not take a part of it for all. It may be used from
// any goroutine.
type Output struct {
	w  io.Writer
	mu sync.Mutex

	err     error
	backlog *backlog // nil: a write waits until w has taken it
}

// NewOutput returns an Output that writes to w.
func NewOutput(w io.Writer) *Output { return &Output{w: w} }

// Write writes b.
func (w *Output) Write(b []byte) (int, error) {
	if w.backlog != nil {
		return w.backlog.put(w, b)
	}
	return w.write(b)
}

func (w *Output) write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.keep(err)
	}
	return n, err
}

// keep keeps the first error, and returns err.
func (w *Output) keep(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

// Status returns the exit status of a program that has chosen own. If that is 0 and something
// could not be written, Status says so on stderr, after the name of the program, and returns 1.
func (w *Output) Status(own int, program string, stderr io.Writer) int {
	if w.backlog != nil {
		if err := w.backlog.drain(); err != nil {
			w.keep(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if own != 0 || w.err == nil {
		return own
	}
	fmt.Fprintf(stderr, "%s: not all of the output was written: %v\n", program, w.err)
	return 1
}
