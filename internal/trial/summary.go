package trial

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gocolo/lockstep/event"
)

// Summary is the last line with -json, over all runs. Durations are in the
// unit of their name; a figure is 0 where there was nothing to measure.
type Summary struct {
	Backend       string                 `json:"backend"`
	Mode          string                 `json:"mode"`
	VCPUs         int                    `json:"vcpus"`
	MemBytes      uint64                 `json:"mem_bytes"`
	Checkpoints   int                    `json:"checkpoints"`            // without the initial synchronisation
	Causes        map[event.Cause]uint64 `json:"causes"`                 // the checkpoints by their causes
	PerSecond     float64                `json:"checkpoints_per_second"` // from the first to the last
	DirtyPagesP50 uint64                 `json:"dirty_pages_p50"`
	PauseP50      int64                  `json:"pause_us_p50"`
	PauseP99      int64                  `json:"pause_us_p99"`
	StoppedP50    int64                  `json:"stopped_us_p50"` // what the guest lost, as its vCPUs measure it
	StoppedP99    int64                  `json:"stopped_us_p99"`
	TransferP50   int64                  `json:"transfer_us_p50"`
	CommitP50     int64                  `json:"commit_us_p50"`
	Failover      float64                `json:"failover_ms"` // SIGKILL to the survivor's first frame, for which a secondary waits until the grant of the dead primary is over; of several runs the median
	Released      uint64                 `json:"released"`
	Lost          uint64                 `json:"lost"`
	Duplicated    uint64                 `json:"duplicated"`
	Contradicted  uint64                 `json:"contradicted"`
	Corrupted     uint64                 `json:"corrupted"`
	Inputs        uint64                 `json:"inputs"`                 // of the client, that the guest has answered
	Matched       uint64                 `json:"matched"`                // packets of the primary whose twin the secondary's guest sent
	Diverged      uint64                 `json:"diverged"`               // times that the comparison found the guests to differ
	AtMatch       uint64                 `json:"released_at_match"`      // packets that left because of their twin
	AtCheckpoint  uint64                 `json:"released_at_checkpoint"` // because a checkpoint covered them
	LatencyP50    int64                  `json:"latency_us_p50"`         // added to a packet that left at a match; of several runs the median
	LatencyP99    int64                  `json:"latency_us_p99"`         // of several runs the worst
	Survivor      string                 `json:"survivor"`
	COLOExit      string                 `json:"colo_exit"` // the survivor's reason

	*LateFigures // with -signal stop
	*SeriesFigures
	*DiskFigures // with -disk
	*Repeated    // with -repeat
}

// LateFigures are added to those of runs whose victim was stopped and woken.
type LateFigures struct {
	LateFrames int     `json:"late_frames"`    // that left the victim after it was woken; the survivor has said them too
	LateWithin float64 `json:"late_within_ms"` // of that, the last one
}

// DiskFigures are added to those of runs with a disk.
type DiskFigures struct {
	DiskBlocks    uint64 `json:"disk_blocks"`    // writes of the guests
	DiskLost      uint64 `json:"disk_lost"`      // sectors of the survivors' disks, 512 bytes each, without their last write
	DiskCorrupted uint64 `json:"disk_corrupted"` // with anything else
}

// SeriesFigures are added to those of series.
type SeriesFigures struct {
	Failovers     int     `json:"failovers"`
	Switchovers   int     `json:"switchovers"`
	Unplanned     int     `json:"unplanned"`                  // changes of sides that nobody has made
	DowntimeP50   float64 `json:"failover_downtime_ms_p50"`   // SIGKILL to the survivor's first frame; at the latest the term of a grant
	DowntimeP99   float64 `json:"failover_downtime_ms_p99"`   //
	SwitchoverP50 float64 `json:"switchover_downtime_ms_p50"` // the last frame of the old host to the first of the new
	SwitchoverP99 float64 `json:"switchover_downtime_ms_p99"` //
	StoodP50      float64 `json:"stood_still_ms_p50"`         // the guest's last instruction there to the old host's word of its first here
	StoodP99      float64 `json:"stood_still_ms_p99"`         //
	AgainP50      float64 `json:"protected_again_ms_p50"`     // the return of the old host, or a switchover, to the next protection
	AgainP99      float64 `json:"protected_again_ms_p99"`     //
}

// seriesFigures adds up the changes of sides of all runs.
func seriesFigures(runs []*Result) *SeriesFigures {
	f := new(SeriesFigures)
	var failovers, switchovers, stood, again []time.Duration
	for _, r := range runs {
		f.Unplanned += r.unplanned
		for _, c := range r.changes {
			again = append(again, c.Again)
			if c.Kind == changeSwitched {
				switchovers, stood = append(switchovers, c.Downtime), append(stood, c.Stood)
			} else {
				failovers = append(failovers, c.Downtime)
			}
		}
	}
	f.Failovers, f.Switchovers = len(failovers), len(switchovers)
	f.DowntimeP50, f.DowntimeP99 = milliseconds(quantile(failovers, 0.5)), milliseconds(quantile(failovers, 0.99))
	f.SwitchoverP50, f.SwitchoverP99 = milliseconds(quantile(switchovers, 0.5)), milliseconds(quantile(switchovers, 0.99))
	f.StoodP50, f.StoodP99 = milliseconds(quantile(stood, 0.5)), milliseconds(quantile(stood, 0.99))
	f.AgainP50, f.AgainP99 = milliseconds(quantile(again, 0.5)), milliseconds(quantile(again, 0.99))
	return f
}

// Repeated has the figures of several runs together.
type Repeated struct {
	Runs        int     `json:"runs"`
	Clean       int     `json:"clean"`
	Inside      int     `json:"killed_in_checkpoint"` // of the runs; the others between two, or it is not known where
	FailoverP50 float64 `json:"failover_ms_p50"`
	FailoverP99 float64 `json:"failover_ms_p99"`
	FailoverMax float64 `json:"failover_ms_max"`
}

// Summarise sums up runs that came to a verdict.
func Summarise(o Config, backend string, runs []*Result, tried int) Summary {
	s := Summary{
		Backend: backend, Mode: o.Mode, VCPUs: o.VCPUs, MemBytes: o.Mem,
		Causes: make(map[event.Cause]uint64),
	}
	var all []Checkpoint
	var failovers []time.Duration
	survivors, exits := make(map[string]bool), make(map[string]bool)
	inside, clean := 0, 0
	if o.Disk > 0 {
		s.DiskFigures = new(DiskFigures)
	}
	if o.Failovers+o.Switchovers > 0 {
		s.SeriesFigures = seriesFigures(runs)
	}
	if o.Signal == SignalStop {
		s.LateFigures = new(LateFigures)
	}
	var during time.Duration
	gaps := 0
	for _, r := range runs {
		n, d := r.pace()
		gaps, during = gaps+n, during+d
		if l := s.LateFigures; l != nil {
			l.LateFrames += r.late
			l.LateWithin = max(l.LateWithin, milliseconds(r.lateFor))
		}
		if d := s.DiskFigures; d != nil {
			d.DiskBlocks += r.DiskBlocks
			d.DiskLost += r.DiskLost
			d.DiskCorrupted += r.DiskCorrupted
		}
		for _, c := range r.checkpoints {
			if c.Epoch > 0 {
				all = append(all, c)
				s.Causes[c.Cause]++
			}
		}
		if f := r.failovers(); len(f) > 0 {
			failovers = append(failovers, f...)
		} else if d := r.failover(); d > 0 {
			failovers = append(failovers, d)
		}
		s.Released += r.Released
		s.Lost += r.Lost
		s.Duplicated += r.Duplicated
		s.Contradicted += r.Contradicted
		s.Corrupted += r.Corrupted
		s.Inputs += r.Answered
		s.Matched += r.traffic.Matched
		s.Diverged += r.traffic.Diverged
		s.AtMatch += r.traffic.Matched
		s.AtCheckpoint += r.traffic.AtCheckpoint
		survivors[r.survivor] = true
		exits[string(r.exit.Reason)] = true
		if strings.HasPrefix(r.killedAt, "in ") {
			inside++
		}
		if r.Clean() {
			clean++
		}
	}
	s.Checkpoints = len(all)
	if during > 0 {
		s.PerSecond = float64(gaps) / during.Seconds()
	}
	s.DirtyPagesP50 = quantile(column(all, func(c Checkpoint) uint64 { return c.DirtyPages }), 0.5)
	pauses := column(all, func(c Checkpoint) int64 { return c.PauseUS })
	s.PauseP50, s.PauseP99 = quantile(pauses, 0.5), quantile(pauses, 0.99)
	stops := column(all, func(c Checkpoint) int64 { return c.StoppedUS })
	s.StoppedP50, s.StoppedP99 = quantile(stops, 0.5), quantile(stops, 0.99)
	s.TransferP50 = quantile(column(all, func(c Checkpoint) int64 { return c.TransferUS }), 0.5)
	s.CommitP50 = quantile(column(all, func(c Checkpoint) int64 { return c.CommitUS }), 0.5)
	s.LatencyP50 = quantile(column(runs, func(r *Result) int64 { return r.traffic.LatencyP50US }), 0.5)
	s.LatencyP99 = quantile(column(runs, func(r *Result) int64 { return r.traffic.LatencyP99US }), 1)
	s.Failover = milliseconds(quantile(failovers, 0.5))
	s.Survivor = strings.Join(slices.Sorted(maps.Keys(survivors)), ",")
	s.COLOExit = strings.Join(slices.Sorted(maps.Keys(exits)), ",")
	if o.Repeat > 1 {
		s.Repeated = &Repeated{
			Runs: tried, Clean: clean, Inside: inside,
			FailoverP50: s.Failover,
			FailoverP99: milliseconds(quantile(failovers, 0.99)),
			FailoverMax: milliseconds(quantile(failovers, 1)),
		}
	}
	return s
}

// pace returns how often a checkpoint followed another, the initial synchronisation not
// counted, and how long that took.
func (r *Result) pace() (gaps int, during time.Duration) {
	var last *Checkpoint
	for i := range r.checkpoints {
		c := &r.checkpoints[i]
		if last != nil && last.Epoch > 0 && c.Epoch == last.Epoch+1 {
			gaps, during = gaps+1, during+c.Start.Sub(last.Start)
		}
		last = c
	}
	return gaps, during
}

// Table prints the summary for people.
func (s *Summary) Table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(t)
	var causes []string
	for _, c := range slices.Sorted(maps.Keys(s.Causes)) {
		causes = append(causes, fmt.Sprintf("%d %s", s.Causes[c], c))
	}
	row("checkpoints", "%d (%s), %.0f a second, %d dirty pages p50", s.Checkpoints, strings.Join(causes, ", "), s.PerSecond, s.DirtyPagesP50)
	row("primary paused", "%s ms p50, %s ms p99", ms(s.PauseP50), ms(s.PauseP99))
	if s.StoppedP50 > 0 {
		row("guest stood still", "%s ms p50, %s ms p99", ms(s.StoppedP50), ms(s.StoppedP99))
	}
	row("transfer, commit", "%s ms, %s ms p50", ms(s.TransferP50), ms(s.CommitP50))
	if s.Repeated != nil {
		row("runs", "%d of %d clean, %d killed inside a checkpoint", s.Clean, s.Runs, s.Inside)
		row("failover", "%.1f ms p50, %.1f ms p99, %.1f ms max, from SIGKILL to the survivor's first frame", s.FailoverP50, s.FailoverP99, s.FailoverMax)
	} else if s.Failover > 0 && s.SeriesFigures == nil {
		row("failover", "%.1f ms from SIGKILL to the survivor's first frame", s.Failover)
	}
	if f := s.SeriesFigures; f != nil {
		if f.Failovers > 0 {
			row("failovers", "%d: %.1f ms p50, %.1f ms p99, until the other host was heard", f.Failovers, f.DowntimeP50, f.DowntimeP99)
		}
		if f.Switchovers > 0 {
			row("switchovers", "%d: the guest stood still for %.2f ms p50, %.2f ms p99; nothing was heard for %.1f ms p50, %.1f ms p99",
				f.Switchovers, f.StoodP50, f.StoodP99, f.SwitchoverP50, f.SwitchoverP99)
		}
		row("protected again", "after %.1f ms p50, %.1f ms p99", f.AgainP50, f.AgainP99)
		row("the guest is now", "on host %s", s.Survivor)
	} else {
		row("survivor", "%s (COLO_EXIT %s)", s.Survivor, s.COLOExit)
	}
	row("frames that left", "%d", s.Released)
	if s.Mode == ModeCOLO {
		row("of the primary's", "%d at a match, %s ms later p50, %s ms p99; %d at a checkpoint; the guests differed %d times",
			s.AtMatch, ms(s.LatencyP50), ms(s.LatencyP99), s.AtCheckpoint, s.Diverged)
	} else {
		row("of the primary's", "%d at a checkpoint", s.AtCheckpoint)
	}
	row("inputs answered", "%d", s.Inputs)
	row("of the frames", "%d lost, %d contradicted, %d corrupted, %d sent twice", s.Lost, s.Contradicted, s.Corrupted, s.Duplicated)
	if l := s.LateFigures; l != nil {
		row("of the woken side", "%d frames left, within %.1f ms", l.LateFrames, l.LateWithin)
	}
	if d := s.DiskFigures; d != nil {
		row("disk", "%d blocks written; sectors of the survivor's disk: %d lost, %d corrupted", d.DiskBlocks, d.DiskLost, d.DiskCorrupted)
	}
	t.Flush()
}

// ms prints microseconds as milliseconds.
func ms(us int64) string { return fmt.Sprintf("%.2f", float64(us)/1000) }

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// round3 drops the digits that nobody reads.
func round3(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}
