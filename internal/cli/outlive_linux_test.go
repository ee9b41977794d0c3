package cli

import (
	"bytes"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAProgramOutlivesTheReaderOfItsOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	stdout, err := unix.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stdout)
	OutliveReader()
	defer signal.Reset(syscall.SIGPIPE)
	// Nobody reads the standard output now, of which the runtime knows by its number.
	if err := unix.Dup3(int(w.Fd()), 1, 0); err != nil {
		t.Fatal(err)
	}
	out := NewOutput(os.Stdout)
	_, err = out.Write([]byte("in step\n"))
	if err := unix.Dup3(stdout, 1, 0); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing: %v", err)
	}
	var said bytes.Buffer
	if got := out.Status(0, "program", &said); got != 1 || !strings.Contains(said.String(), "not all of the output was written") {
		t.Errorf("status %d, it said %q", got, &said)
	}
}
