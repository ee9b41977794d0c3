package protect

import (
	"math/rand/v2"
	"slices"
	"sync"
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
	draw := rand.New(rand.NewPCG(seed, 4))
	s.delay = time.Duration(1+draw.IntN(3)) * DefaultCheckpointDelay
	if s.swift = draw.IntN(4) > 0; s.swift {
		s.term, s.patience = 400*time.Millisecond, DefaultLost/2
		s.guest.Interval = s.guest.Interval * 3 / 2
	}
}

// remembers chooses which seeds have guests with memory that they write to seldom, in which what was
// not sent remains to be seen.
func (s *simulation) remembers() {
	if s.latest != nil && s.latest.IntN(3) == 0 {
		s.guest.Pages, s.guest.Touch = 12, 1
	}
}

// elapse lets time pass: in a swift seed, whose hosts wait for half as long for each other
// and for their arbiter, less of it.
func (s *simulation) elapse(d time.Duration) {
	if s.swift {
		d = d * 2 / 5
	}
	time.Sleep(d)
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

// standDeep keeps goroutines standing whose stacks are as deep as those of a seed become. The
// runtime, if it is told to adapt (see internal/simulate), gives a new goroutine a stack of
// the average size that a collection finds; between two seeds it would find nobody, and each
// goroutine of a seed would grow its stack step by step. What is returned ends them.
func standDeep() (end func()) {
	const many, deep = 64, 10 << 10
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range many {
		group.Go(func() { stand(deep, stop) })
	}
	return func() { close(stop); group.Wait() }
}

//go:noinline
func stand(deep int, stop chan struct{}) byte {
	var frame [512]byte
	if deep -= len(frame); deep > 0 {
		frame[deep%len(frame)] = stand(deep, stop)
	} else {
		<-stop
	}
	return frame[(deep+len(frame))%len(frame)]
}
