package protect

import (
	"time"
)

// What befalls the hosts of some kinds of world in the moments in which it is worst: the pair is
// in step first, or about to be.

// well lets all be well for a moment. It returns the hosts that are in step then; nil:
// none are.
func (s *simulation) well() (primary, secondary *host) {
	s.say("all is well for a moment")
	s.heal(s.more.IntN(2) == 0)
	s.answered()
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		if s.tend(); oneLeads(s.up()) {
			break
		}
	}
	s.elapse(time.Duration(s.more.IntN(1000)) * time.Millisecond)
	for _, h := range s.up() {
		switch h.job.State() {
		case Protected:
			primary = h
		case Following:
			secondary = h
		}
	}
	if primary == nil || secondary == nil {
		return nil, nil
	}
	return primary, secondary
}

// standStill stops a host for longer than its lease and the patience of the other
// last, and maybe for longer than a pause of its guest may take.
func (s *simulation) standStill() {
	s.say("all is well for a moment")
	s.heal(s.more.IntN(2) == 0)
	s.elapse(time.Duration(1000+s.more.IntN(3000)) * time.Millisecond)
	h := s.live[s.names[s.more.IntN(2)]]
	if len(s.names) == 2 && s.live["a"].job.State().runs() != s.live["b"].job.State().runs() && s.more.IntN(4) > 0 {
		for _, x := range s.live { // the one that has the guest, mostly
			if x.job.State().runs() {
				h = x
			}
		}
	}
	h.suspend()
	long := time.Duration(3000+s.more.IntN(13000)) * time.Millisecond
	s.say("%s is stopped for %v", h.name, long)
	time.Sleep(long)
}

// breakOff lets a host die, or stand still for longer than a lease lasts, in the moments
// in which the two change sides; and maybe the other die meanwhile.
func (s *simulation) breakOff() {
	one, other := s.well()
	if one == nil {
		return
	}
	if s.wide != nil && s.wide.IntN(3) == 0 {
		s.migrate(one)
	} else {
		s.verb(one, "switchover", one.job.Switchover)
	}
	when := s.more.IntN(150)
	if s.latest != nil && s.latest.IntN(2) == 0 {
		when = 75 + when/2
	}
	if when < 75 {
		time.Sleep(time.Duration(2*when) * time.Millisecond)
	} else { // as soon as nobody has the guest, as far as the record says
		for range 500 {
			if r, _ := s.store.Load(s.t.Context()); !r.Held() {
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(when-75) * time.Millisecond / 8)
	}
	if s.more.IntN(2) == 0 {
		one, other = other, one
	}
	if s.more.IntN(3) > 0 {
		s.dies(one, s.more.IntN(2) == 0, s.more.IntN(2) == 0)
	} else {
		s.say("%s (%v) is stopped", one.name, one.job.State())
		one.suspend()
		time.Sleep(time.Duration(s.more.IntN(1500)) * time.Millisecond)
		if s.more.IntN(4) == 0 {
			s.dies(other, s.more.IntN(2) == 0, s.more.IntN(2) == 0)
		}
	}
	s.elapse(time.Duration(s.more.IntN(3000)) * time.Millisecond)
}

// wearOut makes the disk of a primary fail in the moments in which its secondary dies. Then the
// memory of the guest is the only place that has what the guest wrote last.
func (s *simulation) wearOut() {
	primary, secondary := s.well()
	if primary == nil {
		return
	}
	// A disk that fails is noticed with the next checkpoint; a host that dies, later.
	between, silent, fails := time.Duration(s.more.IntN(60))*time.Millisecond, s.more.IntN(4) > 0, s.more.IntN(2) == 0
	fail := func() { s.disk(primary, 0, false) }
	if fails {
		fail()
		time.Sleep(between)
	}
	killed := s.kill(secondary, silent, s.more.IntN(2) == 0) // or it has taken over meanwhile
	if !fails {
		time.Sleep(between)
		fail()
	}
	s.elapse(time.Duration(s.more.IntN(2000)) * time.Millisecond)
	for bound := time.Now().Add(20 * time.Second); s.runs() == nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(bound) {
			if lost := s.lost(); !killed || lost != "" {
				s.t.Error("the guest runs nowhere, though its primary lives", lost)
				s.standings()
			}
			return
		}
	}
}

// cutOff leaves each host with nobody, for longer than a grant lasts: whoever is
// asked to leave then must not wait for a guest that waits for its gate.
func (s *simulation) cutOff() {
	if s.newer != nil && s.newer.IntN(2) == 0 {
		s.leaveOneAlone()
	}
	s.say("nobody reaches anybody")
	s.f.ways.part(s.names...)
	for _, h := range s.up() {
		h.noArbiter.Store(true)
	}
	time.Sleep(3 * s.term)
}

// leaveOneAlone parts the hosts, so that one goes on alone: maybe the one that followed,
// and maybe without a disk that works.
func (s *simulation) leaveOneAlone() {
	s.say("the hosts are parted")
	follows := s.newer.IntN(2) == 0
	fails := s.newer.IntN(3) == 0
	for _, h := range s.up() {
		if runs := h.job.State().runs(); follows && runs {
			h.noArbiter.Store(true)
		} else if fails && follows != runs {
			s.disk(h, 0, false)
		}
	}
	s.f.ways.part(s.names...)
	s.elapse(time.Duration(1000+s.newer.IntN(4000)) * time.Millisecond)
}
