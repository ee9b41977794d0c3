package protect

import (
	"bytes"
	"context"
	"errors"
	"time"
)

// How the protection of a seed may end on purpose, at any moment: it is cancelled, the guest ends,
// or it is saved, and goes on from what was saved.

// concludes ends the protection in some seeds, while something else befalls the hosts. It returns
// whether it has ended for good; if not, the hosts come into step once more.
func (s *simulation) concludes() (ended bool) {
	draw := s.later
	h := s.runs()
	if all := s.up(); len(all) > 0 && (h == nil || draw.IntN(4) == 0) {
		h = all[draw.IntN(len(all))]
	}
	what := draw.IntN(5)
	if h == nil || h.over() || what > 2 || what == 2 && (s.compared || s.manual) {
		return false
	}
	if draw.IntN(3) == 0 {
		if one, _ := s.well(); one != nil {
			h = one
		}
	}
	file := new(bytes.Buffer)
	verbs := []struct {
		name string
		do   func(context.Context) error
	}{
		{"cancel", h.job.Cancel},
		{"complete", h.job.Complete},
		{"save", func(ctx context.Context) error { return h.job.Save(ctx, file) }},
	}
	s.say("%s (%v): %s", h.name, h.job.State(), verbs[what].name)
	h.migrates.Store(true) // its Run may end
	answer := make(chan error, 1)
	go func() { answer <- verbs[what].do(s.t.Context()) }() // awaited below
	for range draw.IntN(3) {
		time.Sleep(time.Duration(draw.IntN(1<<draw.IntN(10))) * time.Millisecond)
		s.shakes(h)
	}
	s.elapse(time.Duration(draw.IntN(1<<draw.IntN(12))) * time.Millisecond)
	s.say("the faults stop")
	s.settles.Store(true)
	s.heal(draw.IntN(2) == 0)
	var err error
	select {
	case err = <-answer:
		s.say("%s: %v", verbs[what].name, err)
	case <-time.After(2 * time.Minute):
		s.t.Errorf("%s does not return", verbs[what].name)
		s.standings()
		return true
	}
	if err != nil {
		return false
	}
	s.concluded[what]++
	if what == 0 {
		s.isCancelled(h)
		return true
	}
	if !s.isDone(h) {
		return true
	}
	if what == 1 {
		s.nobodyRuns()
		return true
	}
	s.file = file.Bytes()
	s.say("%s goes on from what was saved", h.name)
	s.start(h.name, true)
	s.file = nil
	return false
}

// shakes does to a host, or to its way to the others, what passes.
func (s *simulation) shakes(h *host) {
	draw := s.later
	switch draw.IntN(5) {
	case 0:
		s.say("%s is parted from all", h.name)
		s.f.ways.part(s.names...)
	case 1:
		s.say("silence from %s", h.name)
		for _, o := range s.others(h.name) {
			s.f.ways.quiet(h.name, o)
		}
	case 2:
		s.say("silence to %s", h.name)
		for _, o := range s.others(h.name) {
			s.f.ways.quiet(o, h.name)
		}
	case 3:
		s.say("%s does not reach its arbiter", h.name)
		h.noArbiter.Store(true)
	case 4:
		s.say("%s is stopped", h.name)
		h.suspend()
	}
}

// isCancelled checks that the guest runs on, on a host that has cancelled its protection, and
// nowhere else.
func (s *simulation) isCancelled(h *host) {
	time.Sleep(5 * s.patienceOf())
	if state := h.job.State(); state != Cancelled {
		s.t.Errorf("%s, which has cancelled, is %v", h.name, state)
		s.standings()
		return
	}
	if !s.leaves() {
		s.t.Errorf("nothing leaves %s, which has cancelled", h.name)
		s.standings()
	}
	s.nobodyElse(h)
}

// isDone waits for the end of a job whose guest has ended.
func (s *simulation) isDone(h *host) bool {
	select {
	case <-h.done:
	case <-time.After(2 * time.Minute):
		s.t.Errorf("the guest has ended, and the job of %s has not", h.name)
		s.standings()
		return false
	}
	if h.ails.unpaused.Load() && errors.Is(h.err, errGuest) {
		// Run has said so, and its gate is shut: its caller sees to the VMM.
		if err := h.guest.Pause(s.t.Context()); err != nil {
			s.t.Error(err)
		}
	} else if h.err != nil {
		s.t.Errorf("the guest has ended on %s: %v", h.name, h.err)
	}
	if !h.guest.Paused() {
		s.t.Errorf("the guest runs on %s, whose job has ended", h.name)
	}
	h.ran = true
	s.verify(h)
	h.leave()
	s.ended = append(s.ended, h)
	delete(s.live, h.name)
	return true
}

// nobodyRuns checks that a guest that has ended goes on nowhere.
func (s *simulation) nobodyRuns() {
	time.Sleep(5 * s.patienceOf())
	heard := s.heard()
	time.Sleep(s.patienceOf())
	if s.heard() > heard {
		s.t.Error("something leaves of a guest that has ended")
	}
	s.nobodyElse(nil)
}

// nobodyElse checks that no host but one has the guest, and that the others wait.
func (s *simulation) nobodyElse(h *host) {
	for _, o := range s.up() {
		state := o.job.State()
		if h == nil && s.manual && state == Asking {
			continue // the host that could tell it is gone
		}
		if o != h && state != Waiting && !o.over() {
			s.t.Errorf("%s is %v", o.name, state)
			s.standings()
		}
	}
}

// patienceOf is as long as anybody waits for another host or for a grant to end.
func (s *simulation) patienceOf() time.Duration {
	longest := 3 * time.Second
	for _, h := range s.up() {
		longest = max(longest, h.job.cfg.Term+h.job.cfg.Lost, h.job.cfg.PeerTimeout)
	}
	return longest
}

var conclusions = [...]string{"cancelled", "completed", "saved"}
