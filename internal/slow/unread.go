package slow

import (
	"errors"
	"os"
	"testing"
	"time"
)

// Unread returns the writing end of a pipe that is full and has a reader that takes nothing, as a logger that hangs, or a
// terminal that is stopped. left lets the reader go: a write that waits ends then. Where writes to a pipe have no deadline
// the test is skipped.
func Unread(t testing.TB) (w *os.File, left func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if err := w.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Skip(err)
	}
	for err == nil {
		_, err = w.Write(make([]byte, 4096)) // until the pipe is full
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	return w, func() { r.Close() }
}
