package colo

import (
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// State is the phase that a session is in, in words.
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

// Info is the state of a session, as query-colo-status answers it, and its figures so
// far. In JSON times are in nanoseconds, as the members' names say.
type Info struct {
	State    State            `json:"state"`     // changes with each phase of Run
	Mode     event.Mode       `json:"mode"`      // none after the session
	LastMode event.Mode       `json:"last-mode"` // the mode before it became none
	Reason   event.ExitReason `json:"reason"`    // none while the session lasts, processing while a failover is under way, then that of the COLO_EXIT
	Failover failover.Status  `json:"-"`
	// FailoverStatus is the QAPI name of Failover.
	FailoverStatus string `json:"failover"`
	// TookOver: this side goes on alone by a failover. State says alone also
	// where the protection was ended.
	TookOver bool `json:"took-over"`
	// BlockedReasons are the devices that keep the guest from being protected,
	// the last registered first, in the words of query-migrate's
	// blocked-reasons; primary only. Set when Run begins. It is not to be
	// changed.
	BlockedReasons []string `json:"blocked-reasons,omitempty"`

	Epoch       uint64                 `json:"epoch"`            // the last checkpoint committed on both sides, as far as this side knows
	Checkpoints uint64                 `json:"checkpoints"`      // committed, the initial synchronisation not counted
	Causes      map[event.Cause]uint64 `json:"causes,omitempty"` // of Checkpoints: how many had which cause; primary only
	Pages       uint64                 `json:"pages"`            // of guest memory sent in checkpoints; primary only
	Bytes       uint64                 `json:"bytes"`            // sent or received in checkpoints

	// Kept are the pages that the dirty log of this side leaves writable, as its memory had
	// them when the last checkpoint was committed; nothing where the memory keeps no such
	// count (see PageKeeper).
	Kept ram.KeepStats `json:"kept"`

	// Channels is how many connections carry the memory of checkpoints; 0: the session's
	// own connection does. Set before checkpoint-ready.
	Channels int `json:"channels,omitempty"`

	// Sync is how far the initial synchronisation is, until checkpoint-ready. From then
	// on it describes the last checkpoint that Converge has asked for, if there was
	// one, and its passes are the rounds of that; primary only.
	Sync Progress `json:"sync"`

	// Held is the output that waits now, as far as the network says (see
	// OutputHolder); primary only.
	Held Held `json:"held"`

	// Disks are the figures of the guest's disks on this side, of those that
	// have any (see replication.Informer). They are taken when Info is called.
	Disks []replication.DiskInfo `json:"disks,omitempty"`

	// Telling is for how long the subscribers of events, or the handler of the log, have had the event that
	// they have now, for which the session waits; 0: there is none. One that does not return holds up the
	// checkpoints, and the guest's output with them.
	Telling time.Duration `json:"telling-ns"`

	// Throttle is the share of the time for which the vCPUs of the guest are kept
	// from running, in percent; 0: they run freely.
	Throttle int `json:"throttle"`

	// Pause is how long the guest stood still in a checkpoint, as the session
	// sees it. Stopped is the same as the VM reports it (see Stopper), nothing
	// where it does not; on a secondary, and with LateResume, it is known of a checkpoint
	// when the next is committed. Transfer is from the request to vmstate-received (on a
	// secondary: from the request to the same message). Commit is from there to
	// vmstate-loaded. Hold is the longest that output of the epoch can have
	// been held, from the mark before it to vmstate-received; primary only.
	Pause    Figure `json:"pause"`
	Stopped  Figure `json:"stopped"`
	Transfer Figure `json:"transfer"`
	Commit   Figure `json:"commit"`
	Hold     Figure `json:"hold"`
}

// Figure is a duration over all checkpoints.
type Figure struct {
	Last      time.Duration `json:"last-ns"`
	Max       time.Duration `json:"max-ns"`
	Total     time.Duration `json:"total-ns"`
	Histogram Histogram     `json:"histogram"` // of the durations; see BucketBound
}

func (f *Figure) add(d time.Duration) {
	f.Last = d
	f.Max = max(f.Max, d)
	f.Total += d
	f.Histogram.add(d)
}

// Progress is how far an initial synchronisation is.
type Progress struct {
	Passes           int           `json:"passes"`               // over memory, the one under way included
	Done             uint64        `json:"done"`                 // bytes sent
	Total            uint64        `json:"total"`                // bytes of memory that were to be sent when the first pass began
	Left             uint64        `json:"left"`                 // bytes of memory that are still to be sent in this pass, pages of zeros included, which cost nothing to send
	Remaining        uint64        `json:"remaining"`            // bytes to be sent when the pass began; 0 in the first
	Rate             float64       `json:"rate"`                 // bytes per second, lately
	ExpectedDowntime time.Duration `json:"expected-downtime-ns"` // what is left, at this rate; 0: not known yet
}

// Held is output of a guest that waits for its checkpoint: how many packets and
// bytes, and how long the oldest has waited.
type Held = event.HeldOutput

// OutputHolder is a PrimaryNetwork that can tell what it holds. HeldOutput may
// be called from any goroutine, and must not call the session. filter.Buffer,
// compare.Comparer and proxy.Primary implement it.
type OutputHolder interface{ HeldOutput() Held }

// Stopper is a VM that measures how long its guest really stood still. Stopped
// returns that time for the last pause, the longest of its vCPUs; 0 says that nobody has
// measured it. It is called from the goroutine in Run, a while after Resume, since a vCPU is
// not back in the guest at once. A primary that resumes early calls it when the checkpoint
// is committed. On a secondary and with LateResume, where the commit follows the resume at
// once, it is called before the next pause, and is then reported with the next checkpoint
// (event.CheckpointCommit.StoppedEpoch).
type Stopper interface{ Stopped() time.Duration }

// PageKeeper is the PageCounter of a primary, or the Stage of a secondary, that counts the
// pages which the dirty log leaves writable: ram.Saver and ram.Cache do. Kept is called from
// the goroutine in Run when a checkpoint has been committed.
type PageKeeper interface{ Kept() ram.KeepStats }

// keeps records for Info.Kept what memory, the RAM of this side, counts of the pages that
// stay writable.
func (s *session) keeps(memory any) {
	k, ok := memory.(PageKeeper)
	if !ok {
		return
	}
	kept := k.Kept()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info.Kept = kept
}

// Info returns the state of the session. Safe from any goroutine.
func (s *session) Info() Info {
	disks := s.disks.DiskInfo()
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.info
	in.State, in.Disks, in.Telling = s.where, disks, s.tellingFor()
	in.Failover = s.machine.Status()
	in.FailoverStatus = in.Failover.String()
	if s.holder != nil {
		in.Held = s.holder.HeldOutput()
	}
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

// record adds to Info the figures of a checkpoint that both sides have committed.
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
	if s.heldFor > 0 {
		in.Hold.add(s.heldFor)
	}
	if c.StoppedNS > 0 && c.StoppedEpoch > 0 {
		in.Stopped.add(time.Duration(c.StoppedNS))
	}
}
