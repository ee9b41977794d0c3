package main

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// A logger behind a pipe that hangs, or a terminal that is stopped, takes nothing.
func TestNeitherTheGuestNorItsHostWaitsForAReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
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
	out, std := streams(nil, w, w)
	said := make(chan struct{})
	go func() {
		defer close(said)
		c := newConsole(std, false, nil)
		c.start(nil)
		c.Write([]byte("of the guest"))
		c.say(std.err, "of the host\n")
	}()
	select {
	case <-said:
	case <-time.After(time.Minute):
		t.Error("it waits for its reader")
	}
	r.Close() // ends the write that waits
	<-said
	out.Status(0, "lockstep-gokvm", io.Discard)
}
