package metrics_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var update = flag.Bool("update", false, "rewrite the files under testdata")

func page(t *testing.T) []byte {
	t.Helper()
	var rec metrics.Recorder
	var bus event.Bus
	defer bus.SubscribeAll(rec.Record)()
	for i, d := range []time.Duration{9 * time.Microsecond, 10 * time.Microsecond, 11 * time.Microsecond, 3 * time.Millisecond, time.Minute} {
		bus.Guest("web").Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: uint64(i), PauseNS: int64(d), TransferNS: int64(d), CommitNS: int64(d)})
	}
	bus.Guest("db\"\n").Publish(event.Stop{})
	bus.Publish(event.CheckpointCommit{Mode: event.ModeSecondary})

	var s metrics.Set
	rec.AddTo(&s)
	metrics.AddInfo(&s, "web", colo.Info{Mode: event.ModePrimary, Epoch: 7, Checkpoints: 6, Causes: map[event.Cause]uint64{event.CauseTimer: 4, event.CauseDivergence: 2},
		Pages: 1 << 20, Bytes: 1 << 32, Kept: ram.KeepStats{Pages: 64, Tried: 300, Idle: 12}, Pause: colo.Figure{Last: time.Millisecond, Max: time.Second, Total: 90 * time.Second},
		Hold: colo.Figure{Last: 20 * time.Millisecond, Max: 2 * time.Second}, Held: colo.Held{Packets: 3, Bytes: 4500, Age: 250 * time.Millisecond},
		Throttle: 30, Sync: colo.Progress{Passes: 4, Done: 3 << 30, Rate: 1e8}})
	metrics.AddInfo(&s, "db", colo.Info{LastMode: event.ModeSecondary, TookOver: true})
	var waits compare.Latency
	for i := range 1000 {
		waits.Add(time.Duration(i) * time.Microsecond)
	}
	n := proxy.PrimaryStats{Matched: 900, Checkpoint: 80, Passed: 20, Diverged: 3, Recovered: 1, Waits: waits, Held: 4, HeldBytes: 6000, Delivered: 700, Connected: true,
		Compare: compare.Stats{SetApart: 2, Apart: 1, Conns: 9}}
	n.Compare.Diverged[compare.ReasonData] = 2
	metrics.AddPrimaryNetwork(&s, "web", "net0", n)
	metrics.AddPrimaryNetwork(&s, "web", "net1", proxy.PrimaryStats{})
	metrics.AddSecondaryNetwork(&s, "db", "net0", proxy.SecondaryStats{Delivered: 7, Unsent: 1, Rewriter: filter.RewriterStats{Rewritten: 5, Signed: 1}, Keep: filter.BufferStats{InheritedBytes: 99}})
	metrics.AddBuffer(&s, "web", "net2", filter.BufferStats{Held: 1, HeldBytes: 60, Written: 5, WrittenBytes: 300, Refused: 2})
	metrics.AddOutputLatency(&s, "web", "", &waits)
	metrics.AddOutputLatency(&s, "web", "net0", new(compare.Latency))
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAPageOfMetrics(t *testing.T) { golden(t, "testdata/page.txt", page(t)) }

func TestPrometheusHasNothingAgainstIt(t *testing.T) { promtool(t, page(t)) }

// golden compares a page with the one that is kept.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// promtool asks Prometheus' own checker about a page.
func promtool(t *testing.T, page []byte) {
	t.Helper()
	cmd := exec.Command(require.Program(t, "promtool", "promtool"), "check", "metrics")
	cmd.Stdin = bytes.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	for _, c := range []struct {
		why string
		add func(*metrics.Set)
	}{
		{"twice", func(s *metrics.Set) {
			s.Add(metrics.Gauge, "a", "h", 1)
			s.Add(metrics.Gauge, "a", "h", 2)
		}},
		{"and a", func(s *metrics.Set) {
			s.Add(metrics.Gauge, "a", "h", 1)
			s.Add(metrics.Counter, "a", "h", 1, metrics.Label{Name: "x", Value: "y"})
		}},
		{"no name", func(s *metrics.Set) { s.Add(metrics.Gauge, "1a", "h", 1) }},
		{"name of a label", func(s *metrics.Set) { s.Add(metrics.Gauge, "a", "h", 1, metrics.Label{Name: "a-b", Value: "y"}) }},
		{"AddHistogram", func(s *metrics.Set) { s.Add(metrics.Histogram, "a", "h", 1) }},
	} {
		var s metrics.Set
		c.add(&s)
		var b bytes.Buffer
		if _, err := s.WriteTo(&b); err == nil || !strings.Contains(err.Error(), c.why) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes", c.why, err, b.Len())
		}
	}
}

func TestCountingWhatWasSeenBeforeAllocatesNothing(t *testing.T) {
	var rec metrics.Recorder
	r := event.Record{Event: event.CheckpointCommit{Mode: event.ModePrimary, PauseNS: 5}}
	rec.Record(r)
	if n := testing.AllocsPerRun(100, func() { rec.Record(r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
