package main

import (
	"encoding/json"
	"fmt"

	"github.com/gocolo/lockstep/colo/metrics"
)

// secondaryStatus is what a relay's status has of one secondary.
type secondaryStatus struct {
	Address string `json:"address"`
	// State is idle (there is no guest yet that it could be sent), away (it is tried again,
	// once a second), synchronising, following, or promoted.
	State      string `json:"state"`
	Checkpoint uint64 `json:"checkpoint"` // of the guest, that it has; 0 also before it has one
	Error      string `json:"error,omitempty"`
}

// standing returns how it stands with the secondary, from any goroutine.
func (s *follower) standing() secondaryStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := secondaryStatus{Address: s.addr, State: "idle", Error: s.why}
	switch {
	case s.goesOn:
		st.State, st.Checkpoint, st.Error = "promoted", s.epoch, ""
	case s.synced:
		st.State, st.Checkpoint, st.Error = "following", s.epoch, ""
	case s.session != nil:
		st.State = "synchronising"
	case s.why != "":
		st.State = "away"
	}
	return st
}

// secondaryStatuses returns how it stands with all of them.
func (r *relayRun) secondaryStatuses() []secondaryStatus {
	list := make([]secondaryStatus, len(r.secondaries))
	for i, s := range r.secondaries {
		list[i] = s.standing()
	}
	return list
}

// saySecondaries prints the member "secondaries" of a status, one of them a line.
func saySecondaries(p *printer, key string, value json.RawMessage) {
	var list []secondaryStatus
	if json.Unmarshal(value, &list) != nil {
		return
	}
	for _, s := range list {
		text := s.Address + " " + s.State
		if s.State == "following" || s.State == "promoted" {
			text += fmt.Sprintf(", checkpoint %d", s.Checkpoint)
		}
		if s.Error != "" {
			text += ": " + s.Error
		}
		p.say("  %-11s %s", key, text)
	}
}

// addSecondaries adds the metrics of a relay's secondaries.
func addSecondaries(m *metrics.Set, list []secondaryStatus) {
	for _, s := range list {
		m.Add(metrics.Gauge, "lockstep_standby_secondary_following", "Whether the secondary has a whole guest, and is sent checkpoints.",
			truth(s.State == "following"), metrics.Label{Name: "address", Value: s.Address})
	}
	for _, s := range list {
		m.Add(metrics.Gauge, "lockstep_standby_secondary_checkpoint", "The checkpoint that the secondary has.",
			float64(s.Checkpoint), metrics.Label{Name: "address", Value: s.Address})
	}
}
