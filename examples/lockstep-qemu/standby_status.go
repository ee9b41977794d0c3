package main

import (
	"math"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
)

// status returns the state of the standby, for an operator.
func (s *standbyRun) status() any { return s.standing() }

func (s *standbyRun) standing() standbyStatus {
	e, why, _ := s.heard.evidence()
	s.heard.mu.Lock()
	defer s.heard.mu.Unlock()
	st := standbyStatus{
		Listen: s.listen, Ready: s.heard.ready, Session: s.heard.live, Generation: s.heard.generation,
		Guardian: e.Guardian == standby.GuardianHere, Said: why, Waits: s.heard.waits, GoneOn: s.heard.runs > 0, Rehearsal: s.tries.status(),
	}
	if age, ok := s.tally.age(); ok {
		st.Age = math.Round(age.Seconds()*1000) / 1000
	}
	st.Back = float64(s.tally.brought.Load()) / float64(time.Millisecond)
	if words := s.stuck.Load(); words != nil {
		st.QEMU = *words
	}
	if words := s.decision.Load(); words != nil {
		st.Decision = *words
	}
	if s.secondariesOf != nil {
		st.Secondaries = s.secondariesOf()
	}
	if s.heard.epoch != nil {
		st.Epoch, st.Bytes = s.heard.epoch()
	}
	return st
}

// standbyStatus is printed by "lockstep-qemu status" of a standby.
type standbyStatus struct {
	Listen     string  `json:"listen"`
	Ready      bool    `json:"waiting"`        // a primary can connect
	Session    bool    `json:"session"`        // with a primary, or one whose end is not settled
	Epoch      uint64  `json:"checkpoint"`     // the number of the last whole checkpoint
	Age        float64 `json:"checkpoint-age"` // in seconds; 0: there is none
	Bytes      uint64  `json:"received"`
	Guardian   bool    `json:"guardian"`
	Generation uint64  `json:"generation"`
	Said       string  `json:"guardian-said"`
	Waits      string  `json:"guardian-waits"` // for what, where the guest cannot go on here before
	Decision   string  `json:"decision"`       // the step, and why, of a standby whose session has ended
	GoneOn     bool    `json:"gone-on"`        // the guest was gone on with here
	QEMU       string  `json:"qemu"`           // why the one that is given the guest does not get on
	Rehearsal  string  `json:"rehearsal"`
	Back       float64 `json:"brought-back-ms,omitempty"` // from the loss until the guest ran again; 0: it was not

	Secondaries []secondaryStatus `json:"secondaries,omitempty"` // a relay's
}
