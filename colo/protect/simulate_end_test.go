package protect

import (
	"slices"
	"strings"
	"time"
)

// How a seed ends. Faults have stopped: the hosts come into step in bounded time, or
// the guest has died with every host that had it.

// inStep waits for the hosts to come into step, and boots meanwhile those whose
// disk has failed. It returns whether they have; if not, the
// guest is lost, or an error has been reported.
func (s *simulation) inStep(within time.Duration) bool {
	for bound := time.Now().Add(within); !oneLeads(s.up()); {
		time.Sleep(100 * time.Millisecond)
		if s.tend() && s.tended < 10 {
			bound = time.Now().Add(within)
		}
		if time.Now().Before(bound) && !s.buried() {
			continue
		}
		switch why := s.lost(); {
		case s.runs() != nil:
			s.t.Error("not protected again")
			s.standings()
		case why != "":
			s.t.Error("the guest runs nowhere: " + why)
			s.standings()
		}
		return false
	}
	return true
}

// tend plays the operator: it gives a good disk to a host whose disk has failed and that follows
// nobody since, or whose guest is torn by that.
func (s *simulation) tend() (done bool) {
	for _, h := range s.up() {
		if h.job.State() == Paused && s.pausing.Load() == 0 { // it was migrated here
			s.say("%s resumes", h.name)
			h.job.Resume()
		}
		if h.over() || h.job.State() == Waiting && h.job.diskFailed() != nil {
			s.again(h)
			s.tended++
			done = true
		}
	}
	return done
}

// again boots a host anew, which opens its disk anew.
func (s *simulation) again(h *host) {
	if h.over() {
		s.say("%s comes again: %v", h.name, h.err)
		if h.err == nil && h.migrates.Load() {
			s.migrated++
		} else if !s.mayEndBy(h.err) {
			s.t.Errorf("the job of %s has ended: %v", h.name, h.err)
		}
		h.leave()
	} else {
		s.say("%s comes again: %v", h.name, h.job.diskFailed())
		h.halt()
	}
	s.ended = append(s.ended, h)
	s.start(h.name, false)
}

// mayEndBy reports whether a job may end by an error: that of a disk or of a VMM, if any has failed. It
// may be that of the other host, in words.
func (w *world) mayEndBy(err error) bool {
	worn := false
	for _, image := range w.images {
		worn = worn || image.failed.Load()
	}
	return err != nil && (worn && strings.Contains(err.Error(), errWorn.Error()) || w.ailed.Load() && strings.Contains(err.Error(), errGuest.Error()))
}

// over reports whether the host's job has ended by itself.
func (h *host) over() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// lost returns why it is not true that the guest is lost; "" if it is: the hosts that had
// it last, since they were granted it or had followed and were in step, are dead.
func (s *simulation) lost() string {
	if s.manual {
		return s.manualLost()
	}
	if (s.diskless || s.odd.back) && s.runs() == nil {
		return "" // each copy is refused until a person has written the record anew
	}
	r, _ := s.store.Load(s.t.Context())
	last := max(r.Generation, s.word.Load())
	has := func(h *host) bool { return h.copyOf.Load() == last }
	if r.Generation < last && slices.ContainsFunc(s.dead, has) {
		return "" // it died before its arbiter had heard of it, which refuses every copy
	}
	if holds := func(h *host) bool { return h.token == r.Token }; r.Generation == s.word.Load() && slices.ContainsFunc(s.dead, holds) {
		return "" // what it had asked for arrived when an operator had said that it was dead
	}
	for _, h := range s.up() {
		if has(h) {
			return h.name + " has it"
		}
	}
	if !slices.ContainsFunc(s.dead, has) && !slices.ContainsFunc(s.ended, has) {
		return "nobody who had it died"
	}
	return ""
}

// buried reports whether the guest has been lost for longer than anybody waits before he
// goes on with a copy.
func (s *simulation) buried() bool {
	if s.runs() != nil || s.lost() != "" {
		s.lostAt = time.Time{}
		return false
	}
	if s.lostAt.IsZero() {
		s.lostAt = time.Now()
	}
	return time.Since(s.lostAt) > 5*s.term
}

// runs returns the host that has the guest; nil: none has.
func (s *simulation) runs() *host {
	for _, h := range s.up() {
		if h.job.State().runs() && h.job.Gate().Open() {
			return h
		}
	}
	return nil
}

// standings says what has become of the hosts.
func (s *simulation) standings() {
	r, err := s.store.Load(s.t.Context())
	s.say("the record is %+v, %v", r, err)
	for _, h := range s.up() {
		s.say("%s has generation %d, is %+v, and was %s", h.name, h.copyOf.Load(), h.job.Query(), h.states())
	}
	for _, h := range append(slices.Clone(s.dead), s.ended...) {
		s.say("%s, which is dead, had generation %d, and was %s", h.name, h.copyOf.Load(), h.states())
	}
}

// oneLeads reports whether one host says that it has a secondary, one that it is that, and
// any other that it waits. (One that stood still a moment ago may say what is not so any
// more.)
func oneLeads(hosts []*host) bool {
	var leads, follows, waits int
	for _, h := range hosts {
		switch h.job.State() {
		case Protected:
			leads++
		case Following:
			follows++
		case Waiting:
			waits++
		}
	}
	return leads == 1 && follows == 1 && waits == len(hosts)-2
}
