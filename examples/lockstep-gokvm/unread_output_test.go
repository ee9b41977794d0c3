package main

import (
	"io"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/slow"
)

// A logger behind a pipe that hangs, or a terminal that is stopped, takes nothing.
func TestNeitherTheGuestNorItsHostWaitsForAReader(t *testing.T) {
	w, left := slow.Unread(t)
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
	left()
	<-said
	out.Status(0, "lockstep-gokvm", io.Discard)
}
