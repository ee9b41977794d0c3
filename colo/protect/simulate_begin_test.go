package protect

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// steps lets a simulation wait for a step of a session.
type steps struct {
	mu     sync.Mutex
	op     string // of a primary, in the synchronisation; "": nobody waits
	passed chan struct{}
}

// passes is a host's SessionConfig.Step.
func (s *steps) passes(side event.Mode, op string, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op != "" && s.op == op && side == event.ModePrimary && epoch == 0 {
		s.op = ""
		close(s.passed)
	}
}

// next returns a channel that is closed when a primary comes to that step of a
// synchronisation.
func (s *steps) next(op string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.op, s.passed = op, make(chan struct{})
	return s.passed
}

// lastOfSynchronisation are the steps from that in which the guest begins to run ahead of
// what its secondary has, until there is a secondary.
var lastOfSynchronisation = []string{"pause", "early resume", "send state", "expect checkpoint-ready", "start disks", "resume", "protected"}

// beginAnew lets a pair lose each other, and up to three things happen at once in the
// moments in which the guest runs on while the other host is sent its first state, and
// loads it.
func (s *simulation) beginAnew() {
	one, other := s.well()
	if one == nil {
		return
	}
	draw := s.newer
	op := lastOfSynchronisation[draw.IntN(len(lastOfSynchronisation))]
	s.say("wait for %q", op)
	passes := s.steps.next(op)
	if draw.IntN(2) == 0 { // all of the memory is sent again
		s.dies(other, draw.IntN(2) == 0, draw.IntN(2) == 0)
	} else {
		s.say("part %s and %s", one.name, other.name)
		s.f.ways.part(one.name, other.name)
		s.elapse(time.Duration(500+draw.IntN(2000)) * time.Millisecond)
		s.say("mend")
		s.f.ways.mend(true)
	}
	select {
	case <-passes:
	case <-time.After(15 * time.Second):
		s.say("it does not come to that")
		return
	}
	if w := draw.IntN(3); w > 0 {
		time.Sleep(time.Duration(draw.IntN(1<<(4*w))) * time.Millisecond / 16) // up to 1 or 16 ms
	}
	all := s.up()
	lead := slices.IndexFunc(all, func(h *host) bool { return h.job.State() == Synchronising || h.job.State() == Protected })
	if len(all) < 2 || lead < 0 {
		return
	}
	one, other = all[lead], all[(lead+1)%len(all)]
	for _, h := range all {
		if h != one && h.job.State() == Following {
			other = h
		}
	}
	s.begun = s.begun || one.job.State() == Synchronising
	for range 1 + draw.IntN(3) {
		s.breakBeginning(one, other)
	}
	s.elapse(time.Duration(draw.IntN(3000)) * time.Millisecond)
}

// breakBeginning makes one fault of two hosts that are about to become a pair.
func (s *simulation) breakBeginning(one, other *host) {
	draw := s.newer
	coin, power := draw.IntN(2) == 0, draw.IntN(2) == 0
	what, much := draw.IntN(11), time.Duration(draw.IntN(1000))
	if one.gone.Load() || other.gone.Load() {
		return
	}
	switch what {
	case 0:
		s.say("part %s and %s", one.name, other.name)
		s.f.ways.part(one.name, other.name)
	case 1:
		s.say("what %s sends does not arrive at %s", one.name, other.name)
		s.f.ways.quiet(one.name, other.name)
	case 2:
		s.say("what %s sends does not arrive at %s", other.name, one.name)
		s.f.ways.quiet(other.name, one.name)
	case 3, 4:
		s.dies(one, coin, power) // the guest is lost with it, or the other has it
	case 5:
		s.dies(other, coin, power)
	case 6:
		s.say("%s (%v) is stopped", one.name, one.job.State())
		one.suspend()
	case 7:
		s.say("%s does not reach its arbiter, by %v", one.name, coin)
		if one.noArbiter.Store(true); coin {
			one.noArbiter.Store(false)
			one.deaf.Store(true)
		}
		s.say("part %s and %s", one.name, other.name)
		s.f.ways.part(one.name, other.name)
	case 8:
		s.disk(one, much, false)
	case 9:
		s.disk(other, much, coin)
	case 10:
		switch much % 3 {
		case 0:
			s.verb(one, "switchover", one.job.Switchover)
		case 1:
			s.verb(one, "pause", func(ctx context.Context) error {
				return s.pauses(ctx, one)
			})
		case 2:
			s.verb(other, "failover", func(context.Context) error { return other.job.Failover() })
		}
	}
}
