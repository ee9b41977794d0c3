package main

import (
	"io"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/slow"
)

// A logger behind a pipe that hangs, or a terminal that is stopped, takes nothing. A standby that waited
// for it would keep the guest of its primary standing.
func TestACommandOnWhichAGuestDependsWaitsForNoReader(t *testing.T) {
	for _, command := range []string{"standby", "relay", "protect", "drill"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			w, left := slow.Unread(t)
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
			left()
			<-said
			out.Status(0, "lockstep-qemu", io.Discard)
		})
	}
}
