package control

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
)

func TestTheGuestsStateIsAWordOfQEMUs(t *testing.T) {
	want := map[string]string{
		"created": "prelaunch", "waiting": "inmigrate", "alone": "running", "synchronising": "running",
		"protected": "running", "paused": "running", "cancelled": "running", "following": "colo", "asking": "colo",
		"taking-over": "colo", "switching-over": "finish-migrate", "concluded": "shutdown",
	}
	j := newJob(protect.Created)
	c := connect(t, NewMonitor(j, Config{}))
	for s := protect.Created; s <= protect.Concluded; s++ {
		j.set(func(in *protect.Info) { in.State = s })
		if got := do(t, c, "query-status", nil); got != fmt.Sprintf("map[running:%v singlestep:false status:%s]", want[s.String()] == "running", want[s.String()]) {
			t.Errorf("%v: %s", s, got)
		}
	}
	j.set(func(in *protect.Info) { in.State = protect.Following; in.Session.State = colo.StateSynchronising })
	if got := do(t, c, "query-status", nil); !strings.Contains(got, "inmigrate") {
		t.Errorf("a copy that is not whole: %s", got)
	}
}

func TestStopIsAPauseOfItsOwn(t *testing.T) {
	j, g, bus := newJob(protect.Protected), new(vm), new(event.Bus)
	m := NewMonitor(j, Config{Guest: g, Events: bus})
	c := connect(t, m)
	status := func() string { return do(t, c, "query-status", nil) }
	do(t, c, "stop", nil)
	do(t, c, "stop", nil)
	if g.paused() != 1 || status() != "map[running:false singlestep:false status:paused]" {
		t.Errorf("after two stops: %d pauses, %s", g.paused(), status())
	}
	do(t, c, "cont", nil)
	do(t, c, "cont", nil)
	if g.paused() != 0 || status() != "map[running:true singlestep:false status:running]" {
		t.Errorf("after two conts: %d pauses, %s", g.paused(), status())
	}
	// A commit, or a takeover, is nothing that an operator can interfere with.
	j.set(func(in *protect.Info) { in.State = protect.Asking })
	for _, command := range []string{"cont"} {
		if got := do(t, c, command, nil); got != "GenericError: "+errNotHere.Error() {
			t.Errorf("%s while it is settled who goes on: %s", command, got)
		}
	}
	if got := do(t, c, "stop", nil); got != "map[]" || g.paused() != 0 {
		t.Errorf("stop of a guest that stands still: %s, %d pauses", got, g.paused())
	}
}

// While a checkpoint is made the session has the guest paused, on either side. No order
// of a client's lets it run before that is done.
func TestContDoesNotLetAGuestRunThatStandsForACheckpoint(t *testing.T) {
	for _, c := range []struct {
		state protect.State
		role  event.Mode
		cont  string // what it answers
	}{
		{protect.Protected, event.ModePrimary, "map[]"},
		{protect.Synchronising, event.ModePrimary, "map[]"},
		{protect.Following, event.ModeSecondary, "GenericError: " + errNotHere.Error()},
		{protect.TakingOver, event.ModeSecondary, "GenericError: " + errNotHere.Error()},
	} {
		var bus event.Bus
		var g vm
		j := newJob(c.state)
		j.info.Role = c.role
		j.info.Session = &colo.Info{State: colo.StateProtected, Mode: c.role}
		client := connect(t, NewMonitor(j, Config{Guest: &g, Events: &bus}))
		if c.role == event.ModePrimary {
			do(t, client, "stop", nil)
		}
		bus.Publish(event.CheckpointStart{Mode: c.role, Epoch: 5})
		g.Pause(t.Context()) // the session's
		if got := do(t, client, "cont", nil); got != c.cont || g.paused() != 1 {
			t.Errorf("%v: %s, %d pauses", c.state, got, g.paused())
		}
		if got := do(t, client, "cont", nil); got != c.cont || g.paused() != 1 {
			t.Errorf("%v, once more: %s, %d pauses", c.state, got, g.paused())
		}
		g.Resume(t.Context())
		bus.Publish(event.CheckpointCommit{Mode: c.role, Epoch: 5})
		if g.paused() != 0 {
			t.Errorf("%v: the guest stands when the checkpoint is done", c.state)
		}
	}
}

// A host that loses its guest must not find it stopped when it takes over again.
func TestAStopEndsWithTheGuestHere(t *testing.T) {
	j, g, bus := newJob(protect.Protected), new(vm), new(event.Bus)
	c := connect(t, NewMonitor(j, Config{Guest: g, Events: bus}))
	do(t, c, "stop", nil)
	bus.Publish(event.JobStatusChange{ID: "db1", State: "protected"})
	if g.paused() != 1 {
		t.Fatal("it ends while the guest is here")
	}
	j.set(func(in *protect.Info) { in.State = protect.Waiting })
	bus.Publish(event.JobStatusChange{ID: "db1", State: "waiting"})
	if g.paused() != 0 {
		t.Error("the guest stays stopped")
	}
}

// A primary that loses its secondary, or that gives a switchover up, has the guest all
// the time: what its operator has stopped stays so.
func TestAStopOutlivesABrokenSession(t *testing.T) {
	j, g, bus := newJob(protect.Protected), new(vm), new(event.Bus)
	c := connect(t, NewMonitor(j, Config{Guest: g, Events: bus}))
	do(t, c, "stop", nil)
	for _, s := range []protect.State{protect.Asking, protect.Alone, protect.Synchronising, protect.Protected, protect.SwitchingOver, protect.TakingOver, protect.Alone} {
		j.set(func(in *protect.Info) { in.State = s })
		bus.Publish(event.JobStatusChange{ID: "db1", State: s.String()})
		if g.paused() != 1 {
			t.Fatalf("the guest runs again when the job is %v", s)
		}
	}
	if got := do(t, c, "query-status", nil); got != "map[running:false singlestep:false status:paused]" {
		t.Error(got)
	}
	for _, s := range []protect.State{protect.Following, protect.Concluded} {
		do(t, c, "stop", nil)
		j.set(func(in *protect.Info) { in.State = s })
		bus.Publish(event.JobStatusChange{ID: "db1", State: s.String()})
		if g.paused() != 0 {
			t.Errorf("the guest stays stopped when the job is %v", s)
		}
		j.set(func(in *protect.Info) { in.State = protect.Alone })
	}
}

func TestTheEndOfAMonitorLetsTheGuestRun(t *testing.T) {
	j, g := newJob(protect.Alone), new(vm)
	m := NewMonitor(j, Config{Guest: g})
	if err := (*machine)(m).Stop(t.Context()); err != nil || g.paused() != 1 {
		t.Fatal(err, g.paused())
	}
	if err := m.Close(); err != nil || g.paused() != 0 {
		t.Error(err, g.paused())
	}
}
