package watch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/timeline"
)

// What a page remembers. At one checkpoint each 15 ms it is more than Span.
const (
	maxCheckpoints = 4096
	maxSamples     = int(Span/sampled) + 8
	maxMarks       = 64
	maxEvents      = 60
	maxFlows       = 512
	maxDisks       = 64
	maxText        = 400 // bytes of an event's
	totals         = 12  // samples of the packets' latency, in a Span
)

// A record holds the past that a page can show.
type record struct {
	checkpoints []timeline.Checkpoint
	samples     []timeline.Sample
	marks       []timeline.Mark
	events      []line // the oldest first
	flows       map[event.Flow]*flow
	omitted     uint64 // divergences that no flow was named for
	disks       map[string]event.DiskSyncProgress
	started     map[event.Mode]time.Time // the checkpoint under way

	hold   colo.Histogram  // of the session, at the last sample
	left   event.Latency   // of the packets that have left, at the last sample
	counts bool            // the job counts left
	kept   timeline.Sample // of the packets that have left since the sample before
	totals []total         // left in the last Span, the oldest first
	seen   string          // the state in the last sample, as text
}

// A total is the latency of all packets that had left by some moment.
type total struct {
	at   time.Time
	left event.Latency
}

// A line is an event as the page shows it.
type line struct {
	At   time.Time `json:"at"`
	Name string    `json:"name"`
	Text string    `json:"text"`
	Tone string    `json:"tone"`
}

// A flow counts the divergences of one flow of packets.
type flow struct {
	count  uint64
	reason string
	last   time.Time
	apart  bool
}

// keep appends v to all, which has at most most entries. If there are more it removes several
// of the oldest at once, so that the others are not moved each time.
func keep[T any](all []T, v T, most int) []T {
	if len(all) >= most {
		all = slices.Delete(all, 0, max(1, most/32))
	}
	return append(all, v)
}

func (r *record) event(rec event.Record) {
	switch e := rec.Event.(type) {
	case event.CheckpointStart:
		if r.started == nil {
			r.started = make(map[event.Mode]time.Time)
		}
		if len(r.started) < 4 {
			r.started[e.Mode] = rec.Time
		}
		return
	case event.CheckpointCommit:
		r.checkpoint(rec.Time, e)
		return
	case event.Stop, event.Resume:
		if len(r.started) > 0 {
			return // a checkpoint's, of which there are many
		}
	case event.MigrationPass:
		return
	case event.DiskSyncProgress:
		r.disk(e)
		return
	case event.DiskSynchronised:
		delete(r.disks, e.Disk)
	case event.DiskResynchronised:
		delete(r.disks, e.Disk)
	case event.NetworkDiverged:
		f := r.flow(e.Flow)
		f.count, f.reason, f.last = f.count+1, e.Reason, rec.Time
		r.omitted += e.Omitted
		return
	case event.NetworkFlowApart:
		f := r.flow(e.Flow)
		f.apart, f.last = true, rec.Time
		return
	case event.NetworkFlowTogether:
		r.flow(e.Flow).apart = false
		return
	case event.JobStatusChange:
		alarm := e.State == protect.Asking.String() || e.State == protect.TakingOver.String()
		r.marks = keep(r.marks, timeline.Mark{At: rec.Time, Name: e.State, Alarm: alarm}, maxMarks)
		r.started = nil
		if e.State != protect.Synchronising.String() {
			r.disks = nil
		}
	}
	r.events = keep(r.events, line{rec.Time, rec.Event.Name(), words(rec.Event), tone(rec.Event)}, maxEvents)
}

func (r *record) checkpoint(at time.Time, e event.CheckpointCommit) {
	begun, ok := r.started[e.Mode]
	took := time.Duration(e.TransferNS + e.CommitNS)
	if !ok || e.Epoch == 0 || at.Sub(begun) > 2*took+time.Minute {
		begun = at.Add(-took)
	}
	delete(r.started, e.Mode)
	stopped := time.Duration(e.StoppedNS)
	if n := len(r.checkpoints); e.StoppedEpoch != e.Epoch {
		if n > 0 && r.checkpoints[n-1].Epoch == e.StoppedEpoch {
			r.checkpoints[n-1].Stopped = stopped
		}
		stopped = 0
	}
	r.checkpoints = keep(r.checkpoints, timeline.Checkpoint{
		At: begun, Epoch: e.Epoch, Cause: e.Cause, Pause: time.Duration(e.PauseNS), Stopped: stopped,
		Transfer: time.Duration(e.TransferNS), Commit: time.Duration(e.CommitNS), Pages: e.Pages, Bytes: e.Bytes,
	}, maxCheckpoints)
}

func (r *record) disk(e event.DiskSyncProgress) {
	if r.disks == nil {
		r.disks = make(map[string]event.DiskSyncProgress)
	}
	if _, ok := r.disks[e.Disk]; ok || len(r.disks) < maxDisks {
		r.disks[e.Disk] = e
	}
}

// flow returns the entry of a flow. Of too many the one that has diverged least
// gives its place, and its count, to the new one, so that those that diverge most
// are always there, with counts that are too high rather than too low.
func (r *record) flow(f event.Flow) *flow {
	if r.flows == nil {
		r.flows = make(map[event.Flow]*flow)
	}
	e := r.flows[f]
	if e != nil {
		return e
	}
	e = new(flow)
	if len(r.flows) >= maxFlows {
		var least event.Flow
		first := true
		for k, v := range r.flows {
			if first || v.count < r.flows[least].count {
				least, first = k, false
			}
		}
		e.count = r.flows[least].count
		delete(r.flows, least)
	}
	r.flows[f] = e
	return e
}

// leaving records the latency of all packets that have left since the job was made. It is
// called before the sample in which it is to appear.
func (r *record) leaving(now time.Time, left *event.Latency) {
	more := left.Since(&r.left)
	if !r.counts {
		more = event.Latency{} // packets that left before the first sample
	}
	r.left, r.counts = *left, true
	r.kept = timeline.Sample{Packets: more.N(), Latency: more.Quantile(0.5), P99: more.Quantile(0.99), Longest: more.Max()}
	for len(r.totals) > 1 && now.Sub(r.totals[1].at) >= Span {
		r.totals = r.totals[1:]
	}
	if n := len(r.totals); n == 0 || now.Sub(r.totals[n-1].at) >= Span/totals {
		r.totals = append(r.totals, total{now, *left})
	}
}

// sample records the state and figures of the job, and reports whether the state has changed.
func (r *record) sample(now time.Time, in protect.Info) (changed bool) {
	s := r.kept
	s.At, s.Bound = now, !r.counts
	var hold colo.Histogram
	if in.Session != nil {
		hold = in.Session.Hold.Histogram
		s.Held = in.Session.Held.Bytes
		if s.Bound {
			s.Latency, s.Longest = since(r.hold, hold)
		}
	}
	r.hold = hold
	r.samples = keep(r.samples, s, maxSamples)
	state := fmt.Sprint(in.State, in.Peer, in.Generation, in.Open)
	changed = state != r.seen
	r.seen = state
	return changed
}

// since returns the median and the longest of the durations that now has and before has not,
// as bounds of buckets.
func since(before, now colo.Histogram) (median, longest time.Duration) {
	var more colo.Histogram
	for i := range now {
		if now[i] < before[i] { // a new session has begun
			return since(colo.Histogram{}, now)
		}
		more[i] = now[i] - before[i]
	}
	return more.Quantile(0.5), more.Quantile(1)
}

// words returns the data of an event as one line of text.
func words(e event.Event) string {
	var parts []string
	for _, a := range event.Attrs(e) {
		v := a.Value.String()
		if v == "" || a.Key == "id" {
			continue
		}
		parts = append(parts, a.Key+" "+v)
	}
	s := strings.ToValidUTF8(strings.Join(parts, ", "), "\ufffd")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// tone returns the style class of the line of an event.
func tone(e event.Event) string {
	switch l := event.Level(e); {
	case l >= 8:
		return "bad"
	case l >= 4:
		return "warn"
	}
	return ""
}
