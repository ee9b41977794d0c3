package cli

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWhoCannotListenIsToldWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, inUse := net.Listen("tcp", taken.Addr().String())
	_, noDirectory := net.Listen("unix", filepath.Join(t.TempDir(), "none", "socket"))
	bind := func(e error) error { return &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", e)} }
	for _, c := range []struct {
		err  error
		todo string
	}{
		{inUse, "give another address"},
		{noDirectory, "make the directory first"},
		{bind(syscall.EADDRNOTAVAIL), "give one of its own"},
		{bind(syscall.EACCES), "a port from 1024 on"},
	} {
		if c.err == nil {
			t.Fatal("it has listened")
		}
		got := Listening("-listen", c.err)
		if text := got.Error(); !errors.Is(got, c.err) || !strings.HasPrefix(text, "-listen: "+c.err.Error()+" (") || !strings.Contains(text, c.todo) {
			t.Errorf("%v is told as %v", c.err, got)
		}
	}
	if got := Listening("-http", io.EOF); got.Error() != "-http: EOF" {
		t.Errorf("another error is told as %v", got)
	}
}
