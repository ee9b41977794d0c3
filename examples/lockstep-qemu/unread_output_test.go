package main

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// A logger behind a pipe that hangs, or a terminal that is stopped, takes nothing. A standby that waited
// for it would keep the guest of its primary standing.
func TestACommandOnWhichAGuestDependsWaitsForNoReader(t *testing.T) {
	for _, command := range []string{"standby", "relay", "protect", "drill"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
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
			out, at := output([]string{command}, w, w)
			said := make(chan struct{})
			go func() {
				defer close(said)
				p := printer{terminal: at}
				p.say("checkpoint")
				p.warn("lost")
			}()
			select {
			case <-said:
			case <-time.After(time.Minute):
				t.Error("it waits for its reader")
			}
			r.Close() // ends the write that waits
			<-said
			out.Status(0, "lockstep-qemu", io.Discard)
		})
	}
}
