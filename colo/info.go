package colo

import (
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
)

// Info is what query-colo-status answers, and the figures of a session so far.
type Info struct {
	Mode     event.Mode       // none before the session and after it
	LastMode event.Mode       // the mode before it became none
	Reason   event.ExitReason // of the COLO_EXIT; none while the session lasts
	Failover failover.Status
	TookOver bool // this side goes on alone

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
	in.Failover = s.machine.Status()
	in.Causes = make(map[event.Cause]uint64, len(s.info.Causes))
	for c, n := range s.info.Causes {
		in.Causes[c] = n
	}
	return in
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
