package protect

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// What befalls seeds from turnSeeds on besides all the rest: while a guest is being handed over, other verbs are
// called on both hosts, connections fall silent, an arbiter stops to answer, a disk or a VMM fails at the call after
// next, a host stands still or dies; each at some moment of the turn, and up to three of it in one.

// turnSeeds is the first of them.
const turnSeeds = 1 << 39

// maxTurns bounds how often a seed does that: before each all is well for a moment, which takes its time.
const maxTurns = 5

// turns says what a seed has of this.
type turns struct {
	draw *rand.Rand // nil: of seeds below turnSeeds

	tried, failing int
	did            [turnKinds]int
}

// The kinds of what befalls a turn.
const (
	turnVerb = iota
	turnSilence
	turnArbiter
	turnStop
	turnDeath
	turnAiling
	turnDisk
	turnKinds
)

// mayTurn chooses whether a seed has any of it.
func (s *simulation) mayTurn(seed uint64) {
	if seed >= turnSeeds {
		s.turns.draw = rand.New(rand.NewPCG(seed, 16))
	}
}

// befallsTurns hands the guest over, if there is a pair in step, and makes faults of those meanwhile. It reports
// whether it has.
func (s *simulation) befallsTurns() bool {
	o := &s.turns
	if o.draw == nil || o.tried == maxTurns || o.draw.IntN(4) > 0 {
		return false
	}
	o.tried++
	primary, secondary := s.well()
	if primary == nil {
		return true
	}
	if o.draw.IntN(3) == 0 { // from before it begins
		s.ails(primary, secondary)
	}
	if o.draw.IntN(4) == 0 {
		s.migrate(primary)
	} else {
		s.verb(primary, "switchover", primary.job.Switchover)
	}
	if o.draw.IntN(2) == 0 { // not in what comes first, which may wait for a checkpoint
		for range 400 {
			if primary.job.State() != Protected {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	for range 1 + o.draw.IntN(3) {
		time.Sleep(time.Duration(o.draw.IntN(1<<o.draw.IntN(19))) * time.Microsecond)
		s.befallsTurn(primary, secondary)
	}
	s.elapse(time.Duration(o.draw.IntN(1<<o.draw.IntN(13))) * time.Millisecond)
	return true
}

// befallsTurn makes one fault of those.
func (s *simulation) befallsTurn(primary, secondary *host) {
	draw := s.turns.draw
	h := primary
	if draw.IntN(2) == 0 {
		h = secondary
	}
	if h.gone.Load() || h.over() {
		return
	}
	kind := draw.IntN(turnKinds)
	s.turns.did[kind]++
	switch kind {
	case turnVerb:
		s.verbInTurn(h)
	case turnSilence:
		channels := []string{chControl, chSession, chHeartbeat, chDisk}
		one, ways := channels[draw.IntN(len(channels))], 1+draw.IntN(3)
		if draw.IntN(3) == 0 {
			s.say("part %s and %s", primary.name, secondary.name)
			s.f.ways.part(primary.name, secondary.name)
			break
		}
		s.say("nothing arrives on %q, in directions %b", one, ways)
		s.f.ways.silenceChannel(one, ways)
	case turnArbiter:
		late := time.Duration(draw.Int64N(int64(1 << (20 + draw.IntN(13)))))
		switch draw.IntN(5) {
		case 0:
			s.say("%s reaches its arbiter no more", h.name)
			h.noArbiter.Store(true)
		case 1:
			s.say("the arbiter hears %s %v late", h.name, late)
			h.slow.Store(int64(late))
		case 2:
			s.say("what the arbiter has done for %s it answers %v later", h.name, late)
			h.tardy.Store(int64(late))
		case 3:
			s.say("2 answers of the arbiter to %s are lost", h.name)
			h.forget.Store(2)
		case 4:
			s.say("the arbiter hears %s late and twice", h.name)
			h.late.Store(1)
			h.twice.Store(true)
		}
	case turnStop:
		long := time.Duration(draw.IntN(1<<draw.IntN(12))) * time.Millisecond
		s.say("%s (%v) stands still for %v", h.name, h.job.State(), long)
		h.suspend()
		time.Sleep(long)
		h.resume()
	case turnDeath:
		s.kill(h, draw.IntN(2) == 0, draw.IntN(2) == 0)
	case turnAiling:
		s.ails(h, h)
	case turnDisk:
		s.disk(h, time.Duration(draw.IntN(1000)), draw.IntN(2) == 0)
	}
}

// ails has the VMM of one of two hosts fail, at the next call or at one of those after it.
func (s *simulation) ails(one, other *host) {
	draw := s.turns.draw
	h := one
	if draw.IntN(2) == 0 {
		h = other
	}
	after := int64(draw.IntN(4))
	what := draw.IntN(4)
	s.turns.failing++
	s.say("%s fails to %s after %d calls", h.name, []string{"pause", "resume", "load", "commit"}[what], after)
	h.ails.spare.Store(after)
	switch what {
	case 0:
		h.ails.pause.Store(1)
	case 1:
		h.ails.resume.Store(1 + int64(draw.IntN(2)))
	case 2:
		h.ails.load.Store(1)
	case 3:
		h.ails.commit.Store(1)
	}
}

// verbInTurn calls a verb on a host while the guest is being handed over.
func (s *simulation) verbInTurn(h *host) {
	switch s.turns.draw.IntN(7) {
	case 0:
		s.verb(h, "switchover", h.job.Switchover)
	case 1:
		s.migrate(h)
	case 2:
		s.verb(h, "pause and resume", func(ctx context.Context) error { return s.pauses(ctx, h) })
	case 3:
		s.verb(h, "checkpoint", func(context.Context) error { return h.job.Checkpoint() })
	case 4, 5:
		s.verb(h, "failover", func(context.Context) error { return h.job.Failover() })
	case 6:
		s.savesInVain(h)
	}
}

// ofTurns adds up what the seeds have seen of this.
type ofTurns struct {
	seeds, tried, failing int
	did                   [turnKinds]int
}

func (a *ofTurns) add(s *simulation) {
	o := &s.turns
	if o.draw == nil {
		return
	}
	a.seeds++
	a.tried += o.tried
	a.failing += o.failing
	for i, n := range o.did {
		a.did[i] += n
	}
}

// check reports it, and what many seeds have seen nothing of.
func (a *ofTurns) check(t *testing.T) {
	if a.seeds == 0 {
		return
	}
	t.Logf("in %d seeds a guest was handed over %d times while other things befell its hosts, %d times a VMM was about to fail, and the rest %v", a.seeds, a.tried, a.failing, a.did)
	if a.seeds < 100 {
		return
	}
	for i, n := range a.did {
		if n == 0 {
			t.Errorf("the kind %d of what befalls a turn has never happened", i)
		}
	}
}
