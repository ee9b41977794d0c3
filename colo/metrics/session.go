package metrics

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
)

// AddInfo adds the figures of a session. Each side of each guest is added once.
func AddInfo(s *Set, guest string, in colo.Info) {
	mode := in.Mode
	if mode == "" || mode == event.ModeNone {
		mode = in.LastMode
	}
	who := []Label{{"guest", guest}, {"mode", mode.String()}}
	with := func(more ...Label) []Label { return append(who[:2:2], more...) }

	s.Add(Gauge, "lockstep_session_state", "The state of the session, which is 1.", 1, with(Label{"state", string(in.State)})...)
	s.Add(Gauge, "lockstep_session_took_over", "Whether this side goes on alone by a failover.", truth(in.TookOver), who...)
	s.Add(Gauge, "lockstep_session_epoch", "The last checkpoint that both sides have.", float64(in.Epoch), who...)
	s.Add(Counter, "lockstep_session_checkpoints_total", "Checkpoints that were committed.", float64(in.Checkpoints), who...)
	for cause, n := range in.Causes {
		s.Add(Counter, "lockstep_session_checkpoints_by_cause_total", "Checkpoints that were committed, by why they were made.", float64(n), with(Label{"cause", string(cause)})...)
	}
	s.Add(Counter, "lockstep_session_pages_total", "Pages of guest memory that were sent in checkpoints.", float64(in.Pages), who...)
	s.Add(Counter, "lockstep_session_transferred_bytes_total", "What was sent or received in checkpoints.", float64(in.Bytes), who...)
	s.Add(Gauge, "lockstep_session_kept_pages", "Pages that the dirty log leaves writable, and reports whether they are written or not.", float64(in.Kept.Pages), who...)
	s.Add(Counter, "lockstep_session_kept_tries_total", "How often a page that is to stay writable was protected, to see whether it is still written.", float64(in.Kept.Tried), who...)
	s.Add(Counter, "lockstep_session_kept_idle_total", "How many of these tries saw no write: about the share of kept pages that are sent for nothing.", float64(in.Kept.Idle), who...)
	for _, f := range []struct {
		step, what string
		colo.Figure
	}{
		{"pause", "The guest stood still in checkpoints", in.Pause},
		{"transfer", "The state of checkpoints was under way", in.Transfer},
		{"commit", "Checkpoints were received, but not yet loaded", in.Commit},
	} {
		s.Add(Counter, "lockstep_session_"+f.step+"_seconds_total", f.what+", over all of them.", f.Total.Seconds(), who...)
		s.Add(Gauge, "lockstep_session_"+f.step+"_last_seconds", f.what+", in the last one.", f.Last.Seconds(), who...)
		s.Add(Gauge, "lockstep_session_"+f.step+"_max_seconds", f.what+", in the longest one.", f.Max.Seconds(), who...)
	}
	s.Add(Gauge, "lockstep_session_telling_seconds", "For how long the session has waited for a subscriber of events, or for its log, to return; 0: it does not wait.", in.Telling.Seconds(), who...)
	if mode == event.ModePrimary {
		addPrimary(s, in, who)
	}
	addDisks(s, guest, in.Disks)
}

// addPrimary adds what only a primary knows.
func addPrimary(s *Set, in colo.Info, who []Label) {
	s.Add(Gauge, "lockstep_session_hold_last_seconds", "The longest that output of the guest was held, in the last checkpoint.", in.Hold.Last.Seconds(), who...)
	s.Add(Gauge, "lockstep_session_hold_max_seconds", "The longest that output of the guest was held, in any checkpoint.", in.Hold.Max.Seconds(), who...)
	s.Add(Gauge, "lockstep_session_held_packets", "Packets of the guest that wait now, for a checkpoint or for the other guest.", float64(in.Held.Packets), who...)
	s.Add(Gauge, "lockstep_session_held_bytes", "The bytes of the packets that wait now.", float64(in.Held.Bytes), who...)
	s.Add(Gauge, "lockstep_session_held_age_seconds", "How long the oldest of the packets that wait now has waited.", in.Held.Age.Seconds(), who...)
	s.Add(Gauge, "lockstep_session_throttle_ratio", "The share of the time for which the guest is kept from running, because it writes memory faster than the link carries it.", float64(in.Throttle)/100, who...)
	s.Add(Gauge, "lockstep_session_sync_passes", "Passes over the guest's memory in the first synchronisation, the one under way included.", float64(in.Sync.Passes), who...)
	s.Add(Gauge, "lockstep_session_sync_sent_bytes", "What has been sent in the first synchronisation.", float64(in.Sync.Done), who...)
	s.Add(Gauge, "lockstep_session_sync_bytes_per_second", "How fast the first synchronisation is, lately.", in.Sync.Rate, who...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// maxSeries bounds how many guests and names of events a Recorder knows. What is
// beyond is not counted.
const maxSeries = 4096

// A Recorder makes histograms and counts of the events of a bus, for all guests whose
// events the bus carries:
//
//	var rec metrics.Recorder
//	defer bus.SubscribeAll(rec.Record)()
//
// The zero Recorder is ready. Its methods may be called from any goroutine.
type Recorder struct {
	mu          sync.Mutex
	checkpoints map[side]*checkpoints
	events      map[named]uint64
}

// side tells the checkpoints of one guest's side from those of others.
type side struct {
	guest string
	mode  event.Mode
}

// named tells the events of one guest and name from others.
type named struct{ guest, event string }

// checkpoints has the durations of the parts of a side's checkpoints.
type checkpoints struct{ pause, transfer, commit Durations }

// Record counts an event. It allocates nothing for what it has seen before.
func (r *Recorder) Record(rec event.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events == nil {
		r.events, r.checkpoints = make(map[named]uint64), make(map[side]*checkpoints)
	}
	n := named{rec.Guest, rec.Event.Name()}
	if _, ok := r.events[n]; ok || len(r.events) < maxSeries {
		r.events[n]++
	}
	e, ok := rec.Event.(event.CheckpointCommit)
	if !ok {
		return
	}
	c := r.checkpoints[side{rec.Guest, e.Mode}]
	if c == nil {
		if len(r.checkpoints) == maxSeries {
			return
		}
		c = new(checkpoints)
		r.checkpoints[side{rec.Guest, e.Mode}] = c
	}
	c.pause.Observe(time.Duration(e.PauseNS))
	c.transfer.Observe(time.Duration(e.TransferNS))
	c.commit.Observe(time.Duration(e.CommitNS))
}

// AddTo adds what was counted so far.
func (r *Recorder) AddTo(s *Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, count := range r.events {
		s.Add(Counter, "lockstep_events_total", "Events that were published, by name.", float64(count), Label{"guest", n.guest}, Label{"event", n.event})
	}
	for k, c := range r.checkpoints {
		who := []Label{{"guest", k.guest}, {"mode", k.mode.String()}}
		s.AddHistogram("lockstep_checkpoint_pause_seconds", "How long the guest stood still in a checkpoint.", &c.pause, who...)
		s.AddHistogram("lockstep_checkpoint_transfer_seconds", "How long the state of a checkpoint was under way.", &c.transfer, who...)
		s.AddHistogram("lockstep_checkpoint_commit_seconds", "How long a checkpoint took from its receipt to having been loaded.", &c.commit, who...)
	}
}
