package protect

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
)

// What befalls seeds from furtherSeeds on besides all the rest: verbs are given up soon, or called by those
// who listen to events; an arbiter answers as late as a grant lasts, to the nanosecond; both hosts are
// told to go on within one beat; and each method of a VMM takes its time.

// furtherSeeds is the first of them.
const furtherSeeds = 1 << 36

// further says what a seed has of this.
type further struct {
	draw   *rand.Rand  // nil: of seeds below furtherSeeds
	listen bool        // whoever listens to events calls verbs
	calm   atomic.Bool // but not while the faults have stopped

	mu    sync.Mutex
	calls *rand.Rand // of those who listen

	givenUp, called, exactly, both, tarried int
}

// isFurther chooses whether a seed has any of it.
func (s *simulation) isFurther(seed uint64) {
	if seed >= furtherSeeds {
		s.further.draw, s.further.calls = rand.New(rand.NewPCG(seed, 12)), rand.New(rand.NewPCG(seed, 13))
		s.further.listen = s.further.draw.IntN(2) == 0
	}
}

// listens has somebody listen to the events of a host who calls verbs that wait for no session.
func (s *simulation) listens(name string, c *Config) {
	o := &s.further
	if o.draw == nil || !o.listen {
		return
	}
	c.Events.SubscribeAll(func(event.Record) {
		h := s.newest(name)
		if h == nil || o.calm.Load() { // New has something to tell
			return
		}
		o.mu.Lock()
		what, much := o.calls.IntN(60), time.Duration(20+o.calls.IntN(300))*time.Millisecond
		o.called++
		o.mu.Unlock()
		switch what {
		case 0, 1, 2:
			h.job.Checkpoint()
		case 3:
			h.job.SetDelay(much)
		case 4:
			h.job.Resume()
		case 5, 6, 7, 8:
			h.job.Query()
		case 9:
			if !s.manual {
				h.job.Failover()
			}
		}
	})
}

// befallsFurther makes one fault of those, and reports whether it has made one.
func (s *simulation) befallsFurther(h *host) bool {
	o := &s.further
	if o.draw == nil || o.draw.IntN(4) > 0 {
		return false
	}
	switch o.draw.IntN(5) {
	case 0, 1:
		s.givesUp(h)
	case 2:
		s.answersAsLate(h)
	case 3:
		s.bothGoOn()
	case 4:
		most := time.Duration(o.draw.IntN(1<<o.draw.IntN(11))) * time.Millisecond
		s.say("each method of the VMM of %s takes %v", h.name, most)
		o.tarried++
		h.ails.tarries.Store(int64(most))
	}
	return true
}

// givesUp has an operator call a verb and give it up soon.
func (s *simulation) givesUp(h *host) {
	o := &s.further
	after := time.Duration(o.draw.IntN(1<<o.draw.IntN(30))) * time.Microsecond / 1000
	verb, name := h.job.Switchover, "switchover"
	switch o.draw.IntN(4) {
	case 0:
		h.migrates.Store(true)
		verb, name = h.job.Migrate, "migrate"
	case 1:
		name = "pause and resume"
		verb = func(ctx context.Context) error {
			s.pausing.Add(1)
			defer s.pausing.Add(-1)
			err := h.job.Pause(ctx, "simulated")
			if err != nil {
				wait.For(s.t.Context(), 20*time.Second) // the session ends all the same, or does not
			}
			h.job.Resume()
			return err
		}
	}
	s.say("%s: %s, which is given up after %v", h.name, name, after)
	o.givenUp++
	s.verbs.Go(func() {
		ctx, cancel := context.WithTimeout(s.t.Context(), after)
		defer cancel()
		verb(ctx)
	})
}

// answersAsLate has the arbiter answer a host as late as a grant lasts, or a moment earlier or later.
func (s *simulation) answersAsLate(h *host) {
	o := &s.further
	term := h.job.cfg.Term
	late := []time.Duration{term, term - failover.Margin(term), term / 2, term / 3}[o.draw.IntN(4)]
	late += time.Duration(o.draw.IntN(3)-1) * time.Nanosecond
	o.exactly++
	if o.draw.IntN(2) == 0 {
		s.say("the arbiter hears %s %v late", h.name, late)
		h.slow.Store(int64(late))
	} else {
		s.say("what the arbiter has done for %s it answers %v later", h.name, late)
		h.tardy.Store(int64(late))
	}
	s.elapse(time.Duration(o.draw.Int64N(int64(2 * term))))
}

// bothGoOn tells all hosts to go on, within one beat, and may cut them off from each other before.
func (s *simulation) bothGoOn() {
	o := &s.further
	if s.manual {
		return // the operator says that
	}
	o.both++
	if up := s.up(); len(up) > 0 && o.draw.IntN(2) == 0 {
		h := up[o.draw.IntN(len(up))]
		for _, other := range s.others(h.name) {
			s.say("part %s and %s", h.name, other)
			s.f.ways.part(h.name, other)
		}
	}
	for _, h := range s.up() {
		s.verb(h, "failover", func(context.Context) error { return h.job.Failover() })
		time.Sleep(time.Duration(o.draw.Int64N(int64(DefaultBeat))) / 2)
	}
}

// ofFurther adds up what the seeds have seen of this.
type ofFurther struct{ seeds, givenUp, called, exactly, both, tarried int }

func (a *ofFurther) add(s *simulation) {
	if o := &s.further; o.draw != nil {
		*a = ofFurther{a.seeds + 1, a.givenUp + o.givenUp, a.called + o.called, a.exactly + o.exactly, a.both + o.both, a.tarried + o.tarried}
	}
}

// check reports it, and what many seeds have seen nothing of.
func (a *ofFurther) check(t *testing.T) {
	if a.seeds == 0 {
		return
	}
	t.Logf("in %d seeds %d verbs were given up, listeners were told %d events, %d times an arbiter answered as late as a grant lasts, %d times all hosts were told to go on, %d times a VMM took its time",
		a.seeds, a.givenUp, a.called, a.exactly, a.both, a.tarried)
	if a.seeds >= 200 && min(a.givenUp, a.called, a.exactly, a.both, a.tarried) == 0 {
		t.Error("some of it has never happened")
	}
}
