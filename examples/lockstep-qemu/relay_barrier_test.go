package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// said is a line of a relay, of the kinds that matter here.
type said struct {
	Event     string
	Data      struct{ Epoch uint64 } // of an event
	Secondary string
	Epoch     *uint64 // of a secondary
	Sync      *struct{ Want, Have int }
}

func (p *program) lines() (list []said) {
	for _, line := range strings.Split(p.output(), "\n") {
		var l said
		if json.Unmarshal([]byte(line), &l) == nil {
			list = append(list, l)
		}
	}
	return list
}

// inStep waits until a relay has said that n secondaries are in step.
func (p *program) inStep(n int) {
	p.t.Helper()
	for i := 0; ; i++ {
		var s struct{ Have int }
		if err := json.Unmarshal(p.object("sync", i), &s); err != nil {
			p.t.Fatal(err)
		}
		if s.Have == n {
			return
		}
	}
}

func TestRelayInStepAnswersWhenTheSecondariesHaveTheCheckpoint(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri1, uri2 := freeAddress(t), freeAddress(t)
	s1, m1 := secondary(t, "microvm", uri1)
	s2, m2 := secondary(t, "microvm", uri2)
	r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t), "-to", uri1+","+uri2, "-qmp", m1+","+m2, "-sync", "2")
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.inStep(2)
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 10)
	seen := qemutest.Serial(p.Dir)
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 3)
	p.Kill()
	r.ends(exitOK)
	var got struct{ Secondary string }
	if err := json.Unmarshal(r.object("promoted", 0), &got); err != nil {
		t.Fatal(err)
	}
	chosen := s1
	if got.Secondary == uri2 {
		chosen = s2
	}
	goesOn(t, chosen, seen[len(seen)-1])

	// Each answer comes after both secondaries'.
	epoch := make(map[string]uint64)
	both, checked := false, 0
	for _, l := range r.lines() {
		switch {
		case l.Sync != nil:
			both = l.Sync.Have == 2
		case l.Epoch != nil:
			epoch[l.Secondary] = *l.Epoch
		case l.Event == "CHECKPOINT_COMMIT" && both:
			checked++
			if e := l.Data.Epoch; epoch[uri1] < e || epoch[uri2] < e {
				t.Errorf("checkpoint %d was answered when the secondaries had %v", e, epoch)
			}
		}
	}
	if checked < 10 {
		t.Errorf("%d checkpoints in step", checked)
	}
}

func TestRelayInStepIsNotHeldUpForLongByASecondary(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	uri1, uri2 := freeAddress(t), freeAddress(t)
	s1, m1 := secondary(t, "microvm", uri1)
	_, m2 := secondary(t, "microvm", uri2)
	r := start(t, "relay", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t), "-to", uri1+","+uri2, "-qmp", m1+","+m2, "-sync", "2", "-peer-timeout", "4s")
	p, _ := primary(t, "microvm")
	p.Protect(r.text("listening"), 20*time.Millisecond)
	r.inStep(2)
	stop(s1)
	r.inStep(1)
	r.checkpoints(strings.Count(r.output(), "CHECKPOINT_COMMIT") + 10)
	p.Kill()
	r.ends(exitOK)
	var got struct{ Secondary string }
	if err := json.Unmarshal(r.object("promoted", 0), &got); err != nil || got.Secondary != uri2 {
		t.Errorf("%+v, %v", got, err)
	}
	var not string
	if err := json.Unmarshal(r.object("not-stopped", 0), &not); err != nil || not == "" {
		t.Errorf("nothing is said of the secondary that does not answer: %q, %v", not, err)
	}
}
