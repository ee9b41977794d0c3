package metrics

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

// AddDisk adds the figures of a guest's disk on one side; AddInfo does so for those
// of a session. The disks of a guest are told apart by their names.
func AddDisk(s *Set, guest string, d replication.DiskInfo) {
	who := []Label{{"guest", guest}, {"mode", d.Mode.String()}, {"disk", d.Name}}
	with := func(more ...Label) []Label { return append(who[:3:3], more...) }

	s.Add(Gauge, "lockstep_disk_state", "The state of the disk's replication, which is 1.", 1, with(Label{"state", d.State})...)
	s.Add(Gauge, "lockstep_disk_size_bytes", "The size of the disk.", float64(d.Size), who...)
	for _, io := range []struct {
		kind string
		*replication.IO
	}{{"read", &d.IO.Read}, {"write", &d.IO.Write}, {"flush", &d.IO.Flush}} {
		kind := with(Label{"kind", io.kind})
		s.Add(Counter, "lockstep_disk_errors_total", "Requests of the guest's that failed.", float64(io.Errors), kind...)
		s.Add(Gauge, "lockstep_disk_in_flight_requests", "Requests of the guest's that are not answered.", float64(io.InFlight), kind...)
		if io.kind != "flush" {
			s.Add(Counter, "lockstep_disk_transferred_bytes_total", "What the guest has read and written.", float64(io.Bytes), kind...)
		}
		s.addLatency("lockstep_disk_request_seconds", "How long requests of the guest's took.", &io.Latency, kind...)
	}
	switch d.Mode {
	case event.ModePrimary:
		s.Add(Gauge, "lockstep_disk_dirty_bytes", "What the secondary's copy lacks, until the next synchronisation.", float64(d.Dirty), who...)
		s.Add(Gauge, "lockstep_disk_forwarding_requests", "Writes on their way to the secondary, or queued for it.", float64(d.InFlight), who...)
		s.Add(Gauge, "lockstep_disk_forwarding_bytes", "The same, by what they write.", float64(d.InFlightBytes), who...)
		s.Add(Gauge, "lockstep_disk_held_requests", "Writes that wait until the secondary has loaded a checkpoint.", float64(d.Held), who...)
		s.Add(Gauge, "lockstep_disk_held_bytes", "The same, by what they write.", float64(d.HeldBytes), who...)
		s.Add(Gauge, "lockstep_disk_lag_bytes", "What was written since the last checkpoint that the secondary has.", float64(d.LagBytes), who...)
		s.Add(Gauge, "lockstep_disk_lag_seconds", "The age of the oldest request that the secondary has not answered.", d.Lag.Seconds(), who...)
	case event.ModeSecondary:
		s.Add(Gauge, "lockstep_disk_overlay_bytes", overlayHelp, float64(d.ActiveBytes), with(Label{"overlay", "active"})...)
		s.Add(Gauge, "lockstep_disk_overlay_bound_bytes", boundHelp, float64(d.ActiveBound), with(Label{"overlay", "active"})...)
	}
	if d.HiddenBound > 0 {
		s.Add(Gauge, "lockstep_disk_overlay_bytes", overlayHelp, float64(d.HiddenBytes), with(Label{"overlay", "hidden"})...)
		s.Add(Gauge, "lockstep_disk_overlay_bound_bytes", boundHelp, float64(d.HiddenBound), with(Label{"overlay", "hidden"})...)
	}
}

// addDisks adds the disks of a session. Those without a name of their own are told
// apart by their numbers.
func addDisks(s *Set, guest string, disks []replication.DiskInfo) {
	seen := make(map[string]bool)
	for i, d := range disks {
		if d.Name == "" || seen[d.Name] {
			d.Name += "#" + strconv.Itoa(i)
		}
		seen[d.Name] = true
		AddDisk(s, guest, d)
	}
}

const (
	overlayHelp = "What an overlay of the secondary takes; a checkpoint empties it."
	boundHelp   = "What an overlay of the secondary may take."
)

// addLatency adds a histogram whose buckets are those of a disk, of which every
// other is left out.
func (s *Set) addLatency(name, help string, l *replication.Latency, labels ...Label) {
	text, ok := s.labels(name, labels)
	if !ok {
		return
	}
	var b bytes.Buffer
	sum := uint64(0)
	for i, n := range l.Counts {
		le := number(replication.LatencyBound(i).Seconds())
		if i == len(l.Counts)-1 {
			le = "+Inf"
		}
		sum += n
		if i%2 == 1 {
			with, _ := s.labels(name, append(labels[:len(labels):len(labels)], Label{"le", le}))
			fmt.Fprintf(&b, "%s_bucket%s %d\n", name, with, sum)
		}
	}
	fmt.Fprintf(&b, "%s_sum%s %s\n%s_count%s %d\n", name, text, number(time.Duration(l.Sum).Seconds()), name, text, sum)
	s.put(Histogram, name, help, text, b.Bytes())
}
