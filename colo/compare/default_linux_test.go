package compare_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/netns"
)

var (
	stackRuns  = flag.Int("stacks.runs", 1, "how often each transfer between kernel stacks is made")
	stackFirst = flag.Int("stacks.first", 0, "the number of the first run, which decides what is lost")
)

// The guests' stacks have the kernel's default buffers. One that is short of room
// drops input that the other has taken, at any time, so the secondary's is behind
// in what it acknowledges until the client has sent that again: it does only
// because what leaves acknowledges no more.
func TestTransfersBetweenStacksWithDefaultBuffersNeverStall(t *testing.T) {
	for _, loss := range []float64{0, 0.005} {
		for way, transfer := range map[string]func(*testing.T, *world){
			"download": func(t *testing.T, w *world) { download(t, w.dial(t, "tcp", at(netns.Guest4)), size(), 1, func() {}) },
			"upload":   func(t *testing.T, w *world) { upload(t, w.dial(t, "tcp", at(netns.Guest4)), size(), 2, func() {}) },
		} {
			for run := range *stackRuns {
				t.Run(fmt.Sprintf("%s/lost=%v/%d", way, loss, run), func(t *testing.T) {
					seed := uint64(2 * (run + *stackFirst))
					w := newWorldOver(t, func(l *link) {
						seed++
						l.loss, l.dup, l.late, l.rng = loss, 0, 0, newLink(seed, nil).rng
					})
					startServers(t, w)
					transfer(t, w)
					w.check(t)
				})
			}
		}
	}
}

// The secondary's guest alone loses input. The client is told what both have, and
// sends it again.
func TestUploadsGoOnWhereTheSecondaryDropsInput(t *testing.T) {
	w := newWorldOver(t, func(l *link) { l.loss, l.dup, l.late = 0, 0, 0 })
	startServers(t, w)
	c := w.dial(t, "tcp", at(netns.Guest4))
	w.drops.Store(300)
	upload(t, c, 4<<20, 2, func() {})
	w.drops.Store(0)
	download(t, c, 4<<20, 1, func() {})
	w.check(t)
	if s, _ := w.cmp.Stats(); s.Lowered == 0 {
		t.Errorf("%+v", s)
	}
}

// ackPatience is how long an acknowledgment may be owed: who waits for longer asks
// for a checkpoint, and fails the test.
const ackPatience = 10 * time.Second
