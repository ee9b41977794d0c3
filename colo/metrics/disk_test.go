package metrics_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

// diskPage returns a guest with two disks on its primary, one without a name, and the
// secondary's copy of the other.
func diskPage(t *testing.T) []byte {
	t.Helper()
	primary := replication.DiskInfo{
		Name: "vda", Mode: event.ModePrimary, State: "running", Size: 1 << 30,
		Dirty: 1, InFlight: 2, InFlightBytes: 3, Held: 4, HeldBytes: 5, LagBytes: 6, Lag: 1500 * time.Millisecond,
		HiddenBytes: 7, HiddenBound: 8,
	}
	w := &primary.IO.Write
	w.Requests, w.Errors, w.Bytes, w.InFlight = 7, 1, 28672, 2
	w.Latency.Counts[0], w.Latency.Counts[1], w.Latency.Counts[6], w.Latency.Counts[replication.LatencyBuckets-1] = 1, 1, 2, 1
	w.Latency.Sum = 40 * time.Second
	secondary := replication.DiskInfo{
		Name: "vda", Mode: event.ModeSecondary, State: "running", Size: 1 << 30,
		ActiveBytes: 1, ActiveBound: 2, HiddenBytes: 3, HiddenBound: 4,
	}
	var s metrics.Set
	metrics.AddInfo(&s, "web", colo.Info{Mode: event.ModePrimary, Disks: []replication.DiskInfo{primary, {Mode: event.ModePrimary, State: "none"}}})
	metrics.AddDisk(&s, "web", secondary)
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	var disks bytes.Buffer // without what there is of the session
	for line := range bytes.Lines(b.Bytes()) {
		if bytes.Contains(line, []byte("lockstep_disk_")) {
			disks.Write(line)
		}
	}
	return disks.Bytes()
}

func TestAPageOfDisks(t *testing.T) { golden(t, "testdata/disk.txt", diskPage(t)) }

func TestPrometheusHasNothingAgainstDisks(t *testing.T) { promtool(t, diskPage(t)) }

func TestDisksOfOneNameAreStillTwo(t *testing.T) {
	var s metrics.Set
	metrics.AddInfo(&s, "web", colo.Info{Mode: event.ModePrimary, Disks: make([]replication.DiskInfo, 3)})
	if _, err := s.WriteTo(new(bytes.Buffer)); err != nil {
		t.Error(err)
	}
	same := replication.DiskInfo{Name: "vda", Mode: event.ModeSecondary}
	s = metrics.Set{}
	metrics.AddInfo(&s, "web", colo.Info{Mode: event.ModeSecondary, Disks: []replication.DiskInfo{same, same}})
	if _, err := s.WriteTo(new(bytes.Buffer)); err != nil {
		t.Error(err)
	}
}
