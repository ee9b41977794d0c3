package watch

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/timeline"
)

// Whatever comes, a page keeps no more than it shows.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	var r record
	now := time.Unix(1000, 0)
	for i := range maxCheckpoints + 100 {
		at := now.Add(time.Duration(i) * time.Millisecond)
		r.event(event.Record{Time: at, Event: event.CheckpointStart{Mode: event.Mode(fmt.Sprint(i)), Epoch: 1}})
		r.event(event.Record{Time: at, Event: event.CheckpointCommit{Mode: event.ModePrimary, Epoch: uint64(i)}})
		if i > 1000 {
			continue
		}
		r.event(event.Record{Time: at, Event: event.NetworkDiverged{Flow: event.Flow{Source: fmt.Sprint(i)}, Reason: "data"}})
		r.event(event.Record{Time: at, Event: event.NetworkDiverged{Flow: event.Flow{Source: "often"}, Reason: "data"}})
		r.event(event.Record{Time: at, Event: event.DiskSyncProgress{Disk: fmt.Sprint(i), Total: 1}})
		r.event(event.Record{Time: at, Event: event.ProtectionRefused{Error: strings.Repeat("ü", 3000)}})
		r.sample(at, protect.Info{})
	}
	if len(r.checkpoints) > maxCheckpoints || len(r.flows) > maxFlows || len(r.disks) > maxDisks || len(r.events) > maxEvents || len(r.samples) > maxSamples || len(r.started) > 4 {
		t.Errorf("%d checkpoints, %d flows, %d disks, %d events, %d samples, %d begun", len(r.checkpoints), len(r.flows), len(r.disks), len(r.events), len(r.samples), len(r.started))
	}
	if n := len(r.events[0].Text); n > maxText+8 {
		t.Errorf("an event of %d bytes", n)
	}
	if most := r.most(); most[0].Flow != "protocol 0 often → " || most[0].Count < 1001 {
		t.Errorf("what diverges most is lost: %+v", most[0])
	}
	if s := r.copies(); len(s) != maxDisks {
		t.Errorf("%d copies", len(s))
	}
}

func TestLatencyIsThatSinceTheLastLook(t *testing.T) {
	var r record
	in := protect.Info{Session: new(colo.Info)}
	h := &in.Session.Hold.Histogram
	h[3], h[9] = 10, 1
	r.sample(time.Unix(1, 0), in)
	if s := r.samples[0]; s.Latency != colo.BucketBound(3) || s.Longest != colo.BucketBound(9) {
		t.Errorf("%+v", s)
	}
	h[4]++
	r.sample(time.Unix(2, 0), in)
	if s := r.samples[1]; s.Latency != colo.BucketBound(4) || s.Longest != colo.BucketBound(4) {
		t.Errorf("%+v", s)
	}
	r.sample(time.Unix(3, 0), in)
	if s := r.samples[2]; s.Longest != 0 {
		t.Errorf("nothing since, but %+v", s)
	}
	*h = colo.Histogram{2: 1} // another session
	r.sample(time.Unix(4, 0), in)
	if s := r.samples[3]; s.Longest != colo.BucketBound(2) {
		t.Errorf("%+v", s)
	}
}

// A counter is a job that says how long packets were kept.
type counter struct {
	*job
	left event.Latency
}

func (c *counter) OutputLatency() (event.Latency, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left, true
}

func (c *counter) leave(packets int, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range packets {
		c.left.Add(after)
	}
}

func TestAPageShowsHowLongPacketsReallyWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counter{job: newJob(protect.Protected)}
		c.job.info.Session.Hold.Histogram[20] = 3 // the bound of a checkpoint, which is of no interest here
		c.leave(50, time.Hour)                    // before anybody looked
		s := serveInMemory(t, Config{Job: c})
		live := s.live("/live?width=800")
		c.leave(98, 2*time.Millisecond)
		c.leave(2, 40*time.Millisecond)
		got := live.until("the figure", func(s snapshot) bool {
			return slices.ContainsFunc(s.Figures, func(f fact) bool { return strings.HasPrefix(f.Value, "half of 100 packets ") })
		})
		i := slices.IndexFunc(got.Figures, func(f fact) bool { return f.Name == "Output latency, last minute" })
		if v := got.Figures[i].Value; !regexp.MustCompile(`^half of 100 packets 2\.\d\d\x{a0}ms or less, 99 % 4[01]\.\d\x{a0}ms, longest 4[01]\.\d\x{a0}ms$`).MatchString(v) {
			t.Errorf("%q", v)
		}
		for _, want := range []string{"Output latency of packets that left, ms \\(median to 99 %\\)", "100 packets left; in the worst quarter of a second 99 of 100 were kept for 4[01]\\.\\d\\d ms or less\\."} {
			if !regexp.MustCompile(want).MatchString(got.Picture) {
				t.Errorf("the picture does not say %q", want)
			}
		}
		if strings.Contains(got.Picture, "at most, ms (median to longest)") {
			t.Error("the picture has the bounds of checkpoints")
		}
		if _, body, _ := s.request("GET", "/metrics", nil); !strings.Contains(body, `lockstep_output_latency_seconds_bucket{guest="db1",le="0.005"} 98`) || !strings.Contains(body, `lockstep_output_latency_seconds_count{guest="db1"} 150`) {
			t.Errorf("the metrics do not say it:\n%s", body)
		}
	})
}

func TestLatencyOfPacketsIsThatSinceTheLastLook(t *testing.T) {
	var r record
	var left event.Latency
	look := func(second int64) timeline.Sample {
		at := time.Unix(second, 0)
		r.leaving(at, &left)
		r.sample(at, protect.Info{Session: new(colo.Info)})
		return r.samples[len(r.samples)-1]
	}
	left.Add(time.Hour)
	if s := look(1); s.Packets != 0 || s.Longest != 0 || s.Bound {
		t.Errorf("what left before the first look: %+v", s)
	}
	for i := range 100 {
		left.Add(time.Duration(i+1) * time.Millisecond)
	}
	if s := look(2); s.Packets != 100 || s.Latency/time.Millisecond < 50 || s.Latency > 54*time.Millisecond || s.P99 < 99*time.Millisecond || s.P99 > s.Longest || s.Longest > 108*time.Millisecond {
		t.Errorf("%+v", s)
	}
	if s := look(3); s.Packets != 0 || s.Latency != 0 || s.P99 != 0 {
		t.Errorf("nothing since, but %+v", s)
	}
	for i := range int64(1000) { // what the last minute had is forgotten
		look(4 + i)
	}
	if n := len(r.totals); n > totals+2 {
		t.Errorf("%d totals", n)
	}
	if f := r.latency(); len(f) != 1 || f[0].Value != "no packet has left" {
		t.Errorf("%+v", f)
	}
}

// What a checkpoint tells of the pause before is drawn with the checkpoint before.
func TestAPauseIsDrawnWithItsOwnCheckpoint(t *testing.T) {
	var r record
	for _, e := range []event.CheckpointCommit{
		{Epoch: 1, StoppedNS: 7, StoppedEpoch: 0}, // of a checkpoint that is not there
		{Epoch: 2, StoppedNS: 10, StoppedEpoch: 1},
		{Epoch: 3, StoppedNS: 20, StoppedEpoch: 2},
		{Epoch: 4, StoppedNS: 40, StoppedEpoch: 4},
	} {
		r.event(event.Record{Time: time.Unix(1000, int64(e.Epoch)), Event: e})
	}
	var got []time.Duration
	for _, c := range r.checkpoints {
		got = append(got, c.Stopped)
	}
	if want := []time.Duration{10, 20, 0, 40}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
