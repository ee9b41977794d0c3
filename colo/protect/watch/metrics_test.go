package watch

import (
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/require"
)

func TestPrometheusCanWatchThePage(t *testing.T) {
	var body string
	synctest.Test(t, func(t *testing.T) {
		s := serveInMemory(t, Config{Job: newJob(protect.Protected), Metrics: func(s *metrics.Set) {
			s.Add(metrics.Gauge, "vmm_guests", "Guests of this host.", 1)
		}})
		live := s.live("/live")
		s.bus.Publish(event.HeartbeatLost{Mode: event.ModePrimary})
		for {
			snap, err := live.next()
			if err != nil {
				t.Fatal(err)
			}
			if len(snap.Events) > 0 {
				break
			}
			s.bus.Publish(event.HeartbeatLost{Mode: event.ModePrimary})
		}
		_, b, h := s.request("GET", "/metrics", nil)
		body = b
		if h.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
			t.Error(h)
		}
		for _, want := range []string{
			`lockstep_protection_state{guest="db1",host="a",state="protected"} 1`, `lockstep_protection_state{guest="db1",host="a",state="alone"} 0`,
			`lockstep_protection_generation{guest="db1",host="a"} 3`, `lockstep_session_epoch{guest="db1",mode="primary"} 12`,
			`lockstep_events_total{guest="db1",event="HEARTBEAT_LOST"}`, "vmm_guests 1",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("no %s in\n%s", want, body)
			}
		}
	})
	c := exec.CommandContext(t.Context(), require.Program(t, "promtool", "promtool"), "check", "metrics")
	c.Stdin = strings.NewReader(body)
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// A host that has a handler of its own writes all of its guests with one call each.
func TestOnePageHasTheFiguresOfAllJobsOfAHost(t *testing.T) {
	var s metrics.Set
	AddJob(&s, protect.Info{Guest: "db1", Host: "a", State: protect.Protected, Generation: 3, Session: &colo.Info{Mode: event.ModePrimary, Epoch: 12}})
	AddJob(&s, protect.Info{Guest: "db2", Host: "a", State: protect.Waiting, Generation: 7})
	var b strings.Builder
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`lockstep_protection_state{guest="db1",host="a",state="protected"} 1`, `lockstep_protection_generation{guest="db1",host="a"} 3`,
		`lockstep_session_epoch{guest="db1",mode="primary"} 12`,
		`lockstep_protection_state{guest="db2",host="a",state="waiting"} 1`, `lockstep_protection_generation{guest="db2",host="a"} 7`,
		"# TYPE lockstep_protection_generation gauge",
	} {
		if n := strings.Count(b.String(), want+"\n"); n != 1 {
			t.Errorf("%d times %s in\n%s", n, want, b.String())
		}
	}
	if strings.Contains(b.String(), `lockstep_session_epoch{guest="db2"`) {
		t.Errorf("a job without a session has figures of one:\n%s", b.String())
	}
}
