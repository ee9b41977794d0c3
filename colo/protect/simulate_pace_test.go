package protect

import (
	"math/rand/v2"
	"slices"
	"time"
)

// How much a seed does in a second of its clock, which is what a seed takes: of three
// quarters of what its guest does and of its checkpoints no fault takes notice.

// paces gives the guest fewer rounds and the pair fewer checkpoints than they would have
// otherwise, in some seeds many fewer. Seeds that are kept do as before.
func (s *simulation) paces(seed uint64) {
	if slices.Contains(keptSeeds, seed) {
		return
	}
	const least = 10 * time.Millisecond
	s.guest.Interval = least + 2*(s.guest.Interval-least)
	s.delay = time.Duration(1+rand.New(rand.NewPCG(seed, 4)).IntN(3)) * DefaultCheckpointDelay
}

// enough is how many frames show that the guest goes on, over a checkpoint or two.
const enough = 4

// leaves waits until something of what the guest says has left, at most for a second.
func (s *simulation) leaves() bool {
	before := s.heard()
	for range 20 {
		time.Sleep(50 * time.Millisecond)
		if s.heard() >= before+enough {
			break
		}
	}
	return s.heard() > before
}
