package compare_test

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var stackRuns = flag.Int("stacks.runs", 1, "how often each transfer between kernel stacks is made")

// The guests' stacks have the kernel's default buffers. One that is short of room
// drops input that the other has taken, at any time, so the secondary's is behind
// in what it acknowledges until the client has sent that again: it does only
// because what leaves acknowledges no more.
func TestTransfersBetweenStacksWithDefaultBuffersNeverStall(t *testing.T) {
	for _, loss := range []float64{0, 0.005} {
		for way, transfer := range map[string]func(*testing.T, *world){
			"download": func(t *testing.T, w *world) { download(t, w.dial(t, "tcp", at(guest4)), size(), 1, func() {}) },
			"upload":   func(t *testing.T, w *world) { upload(t, w.dial(t, "tcp", at(guest4)), size(), 2, func() {}) },
		} {
			for run := range *stackRuns {
				t.Run(fmt.Sprintf("%s/lost=%v/%d", way, loss, run), func(t *testing.T) {
					w := newWorld(t)
					for i, l := range []*link{w.up, w.down} {
						*l = link{loss: loss, delay: l.delay, out: l.out, rng: newLink(uint64(2*run+i), nil).rng, wake: l.wake}
					}
					startServers(t, w)
					transfer(t, w)
					w.check(t)
				})
			}
		}
	}
}

// compareTimeout is the usual one: who waits for longer asks for a checkpoint, and
// fails the test.
const compareTimeout = 3 * time.Second
