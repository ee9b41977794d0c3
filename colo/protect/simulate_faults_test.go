package protect

import (
	"context"
	"errors"
	"slices"
	"time"
)

// What befalls the hosts of a seed at any time.

// fault makes or mends one fault of the pair, which the seed chooses.
func (s *simulation) fault() {
	s.odd.calm = false
	s.further.calm.Store(false)
	name := s.names[s.rng.IntN(len(s.names))]
	h := s.live[name]
	what, much, coin := s.rng.IntN(20), time.Duration(s.rng.IntN(1000)), s.rng.IntN(2) == 0
	if h == nil || h.gone.Load() {
		s.say("%s comes", name)
		s.start(name, false)
		return
	}
	if s.wide != nil && s.wide.IntN(25) == 0 && s.alsoDoes(h) {
		return
	}
	if s.newer != nil && s.newer.IntN(40) == 0 {
		most := time.Duration(s.newer.IntN(4)*s.newer.IntN(3000)) * time.Millisecond // it may be too long for a pair
		s.reach.Store(int64(most))
		s.say("making a connection takes up to %v", most)
	}
	if s.latest != nil && s.latest.IntN(20) == 0 {
		s.together(h)
		return
	}
	if s.befallsVersions(h) || s.befallsGrowth(h) || s.befallsFurther(h) || s.befallsAKind(h) || s.befallsByMistake() || s.befallsTurns() {
		return
	}
	if s.later != nil && s.later.IntN(6) == 0 {
		s.alsoBefalls(h)
		return
	}
	if s.fresh != nil && s.fresh.IntN(8) == 0 {
		s.befalls(h)
		return
	}
	switch what {
	case 0, 1:
		for _, o := range s.facing(h) {
			s.say("part %s and %s", h.name, o)
			s.f.ways.part(h.name, o)
		}
	case 2:
		for _, o := range s.facing(h) {
			s.say("silence between %s and %s", h.name, o)
			s.f.ways.quiet(h.name, o)
			s.f.ways.quiet(o, h.name)
		}
	case 3:
		for _, o := range s.facing(h) {
			s.say("what %s sends does not arrive at %s", h.name, o)
			s.f.ways.quiet(h.name, o)
		}
	case 4, 5, 6:
		s.say("mend, with resets %v", coin)
		s.f.ways.mend(coin)
	case 7:
		if s.newer != nil && s.newer.IntN(3) == 0 {
			h.deaf.Store(!h.deaf.Load())
			s.say("%s hears its arbiter, which hears it: %v", h.name, !h.deaf.Load())
			break
		}
		h.noArbiter.Store(!h.noArbiter.Load())
		s.say("%s reaches its arbiter: %v", h.name, !h.noArbiter.Load())
	case 8:
		h.slow.Store(int64(much * 600 * time.Microsecond))
		s.say("the arbiter answers %s %v late", h.name, time.Duration(h.slow.Load()))
	case 9:
		h.forget.Store(int64(much % 3))
		s.say("%d answers of the arbiter to %s are lost", much%3, h.name)
	case 10:
		h.late.Store(int64(much % 3))
		h.twice.Store(coin)
		s.say("the arbiter hears %s late %d times, and twice %v", h.name, much%3, coin)
	case 11, 12:
		s.kill(h, coin, much%2 == 0)
	case 13:
		s.say("%s is stopped", h.name)
		h.suspend()
	case 14:
		s.say("%s goes on", h.name)
		h.resume()
	case 15:
		lag := time.Duration(0)
		if coin {
			lag = much * 20 * time.Microsecond
		}
		h.lag.Store(int64(lag))
		s.say("%s is slow, by %v", h.name, lag)
	case 16:
		s.disk(h, much, much%4 > 0)
	case 17, 18:
		s.verb(h, "switchover", h.job.Switchover)
	case 19:
		switch much % 3 {
		case 0:
			s.verb(h, "failover", func(context.Context) error { return h.job.Failover() })
		case 1:
			s.verb(h, "pause and resume", func(ctx context.Context) error {
				return s.pauses(ctx, h)
			})
		case 2:
			s.verb(h, "checkpoint", func(context.Context) error { return h.job.Checkpoint() })
		}
	}
}

// facing chooses whom a host is cut off from: another host, or all.
func (s *simulation) facing(h *host) []string {
	others := s.others(h.name)
	if n := len(others); n > 1 {
		if i := s.more.IntN(n + 1); i < n {
			return others[i : i+1]
		}
	}
	return others
}

var errWorn = errors.New("the medium is worn out")

// disk makes a host's disk fail, or slow.
func (s *simulation) disk(h *host, much time.Duration, slow bool) {
	if !s.disks {
		return
	}
	if slow {
		s.say("the disk of %s is slow, by %v", h.name, much*20*time.Microsecond)
		s.one(h).slows(much * 20 * time.Microsecond)
	} else {
		s.say("the disk of %s fails", h.name)
		s.one(h).breaks(errWorn)
	}
}

func (s *simulation) verb(h *host, name string, do func(context.Context) error) {
	if s.manual && (name == "failover" || name == "fenced") {
		return // the operator says that
	}
	s.say("%s: %s", h.name, name)
	s.verbs.Go(func() {
		ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
		defer cancel()
		do(ctx)
	})
}

// kill kills a host if another has the guest as well, or alone. It comes back at once, or,
// of three, maybe later.
func (s *simulation) kill(h *host, silent, power bool) (killed bool) {
	if !s.survives(h) {
		return false
	}
	follows := s.followerOf(h)
	s.dies(h, silent, power)
	if follows != nil && s.wide != nil && s.wide.IntN(4) == 0 {
		s.fences(follows)
	}
	return true
}

// survives reports whether another host has the guest as well as this one, or alone.
func (s *simulation) survives(h *host) bool {
	mine := h.job.State()
	has := func(o *host) bool {
		switch others := o.job.State(); mine {
		case Protected:
			return others == Following
		case Following, Waiting:
			return others.runs()
		default:
			return false
		}
	}
	return slices.ContainsFunc(s.up(), func(o *host) bool { return o != h && has(o) })
}

// dies kills a host.
func (s *simulation) dies(h *host, silent, power bool) {
	s.say("kill %s (%v), silent %v, power cut %v", h.name, h.job.State(), silent, power)
	h.kill(silent)
	if power && s.disks {
		for _, d := range h.allDisks() {
			d.image.powerCut()
		}
	}
	s.dead = append(s.dead, h)
	if len(s.names) == 2 || s.more.IntN(3) == 0 {
		s.start(h.name, false)
	}
}

// heal ends all that has befallen the hosts. Who is away comes.
func (s *simulation) heal(reset bool) {
	s.f.ways.mend(reset)
	s.reach.Store(0)
	s.further.calm.Store(true)
	s.growth.fails.Store(0)
	s.alike()
	for _, name := range s.names {
		h := s.live[name]
		if h == nil || h.gone.Load() {
			s.start(name, false)
		}
		h = s.live[name]
		h.resume()
		if v := s.versions[name]; v != nil {
			v.Store(0)
		}
		h.noArbiter.Store(false)
		h.deaf.Store(false)
		h.twice.Store(false)
		for _, left := range []interface{ Store(int64) }{&h.slow, &h.tardy, &h.forget, &h.hangs, &h.late, &h.lag} {
			left.Store(0)
		}
		h.ails.heal()
		if s.certificates != nil {
			s.certificates.rights(name)
		}
		if s.disks {
			for _, d := range h.allDisks() {
				d.image.breaks(nil)
				d.image.slows(0)
			}
		}
	}
}

// answered waits until every verb has returned.
func (s *simulation) answered() {
	done := make(chan struct{})
	go func() { defer close(done); s.verbs.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		s.t.Error("a verb does not return")
		s.standings()
	}
}
