package colo

import (
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// State is where a session stands, in words.
type State string

// The states.
const (
	StateNew           State = "new"           // Run was not called yet
	StateSynchronising State = "synchronising" // the initial synchronisation
	StateProtected     State = "protected"     // checkpoint follows checkpoint
	StateAsking        State = "asking"        // the session has ended, and the arbiter, or whoever gives orders, has not said who goes on
	StateTakingOver    State = "taking-over"   // this side goes on, and releases what was held
	StateAlone         State = "alone"         // the guest runs here, unprotected
	StateStopped       State = "stopped"       // the guest does not go on here
)

// Info is what query-colo-status answers, and the figures of a session so far.
type Info struct {
	State    State            // changes with each phase of Run
	Mode     event.Mode       // none before the session and after it
	LastMode event.Mode       // the mode before it became none
	Reason   event.ExitReason // of the COLO_EXIT; none while the session lasts
	Failover failover.Status
	TookOver bool // this side goes on alone by a failover; State says alone also where the protection was ended

	Epoch       uint64                 // the last checkpoint committed on both sides, as far as this side knows
	Checkpoints uint64                 // committed, the initial synchronisation not counted
	Causes      map[event.Cause]uint64 // of those checkpoints; primary only
	Pages       uint64                 // of guest memory sent in checkpoints; primary only
	Bytes       uint64                 // sent or received in checkpoints

	// Pause is how long the guest stood still in a checkpoint. Transfer is
	// from the request to vmstate-received (on a secondary: from the
	// request to the same message). Commit is from there to vmstate-loaded.
	Pause, Transfer, Commit Figure
}

// Figure is a duration over all checkpoints.
type Figure struct {
	Last, Max, Total time.Duration
}

func (f *Figure) add(d time.Duration) {
	f.Last = d
	f.Max = max(f.Max, d)
	f.Total += d
}

// Info returns the state of the session. Safe from any goroutine.
func (s *session) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.info
	in.State = s.where
	in.Failover = s.machine.Status()
	if s.asked() || s.where == StateTakingOver {
		in.Reason = event.ExitProcessing
	}
	in.Causes = make(map[event.Cause]uint64, len(s.info.Causes))
	for c, n := range s.info.Causes {
		in.Causes[c] = n
	}
	return in
}

func (s *session) setWhere(st State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.where = st
}

func (s *session) committed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info.Epoch
}

func (s *session) setEpoch(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info.Epoch = n
}

// record adds a checkpoint, already committed on both sides.
func (s *session) record(c event.CheckpointCommit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &s.info
	in.Epoch = c.Epoch
	if c.Epoch == 0 {
		return
	}
	in.Checkpoints++
	if c.Cause != "" {
		if in.Causes == nil {
			in.Causes = make(map[event.Cause]uint64)
		}
		in.Causes[c.Cause]++
	}
	in.Pages += c.Pages
	in.Bytes += c.Bytes
	in.Pause.add(time.Duration(c.PauseNS))
	in.Transfer.add(time.Duration(c.TransferNS))
	in.Commit.add(time.Duration(c.CommitNS))
}
