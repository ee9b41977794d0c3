package qmp_test

import (
	"context"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// Everything that a QEMU says while it is stopped, reset, migrated, copied and
// ended has a type that takes all of it, and comes in order.
func TestWhatAQEMUSaysNowIsTypedAndInOrder(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := qmp.Dial(ctx, emulator(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	type m = map[string]any
	var order event.Order
	seen := make(map[string]int)
	until := func(match func(event.Event) bool) {
		t.Helper()
		_, err := c.Wait(ctx, func(r event.Record) bool {
			seen[r.Event.Name()]++
			if _, ok := r.Event.(event.Unknown); ok || r.Members != "" {
				t.Errorf("no type takes all of %#v, %s", r.Event, r.Members)
			}
			if err := order.Check(r); err != nil {
				t.Error(err)
			}
			return match(r.Event)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	do := func(command string, args any) {
		t.Helper()
		if err := c.Do(ctx, command, args, nil); err != nil {
			t.Fatal(err)
		}
	}
	named := func(name string) func(event.Event) bool {
		return func(e event.Event) bool { return e.Name() == name }
	}

	do("stop", nil)
	do("cont", nil)
	do("system_reset", nil)
	do("system_powerdown", nil)
	until(named("POWERDOWN"))
	do("migrate-set-capabilities", m{"capabilities": []m{{"capability": "events", "state": true}}})
	do("migrate", m{"uri": "exec:cat >/dev/null"})
	until(func(e event.Event) bool { return e == event.Migration{Status: event.MigrationCompleted} })
	for _, node := range []string{"a", "b"} {
		do("blockdev-add", m{"driver": "null-co", "node-name": node, "size": 1 << 20})
	}
	for _, end := range []string{"job-complete", "job-cancel"} {
		do("blockdev-mirror", m{"device": "a", "target": "b", "sync": "full", "job-id": "j"})
		until(named("BLOCK_JOB_READY"))
		if !order.Ready("j") {
			t.Error("the job is not ready")
		}
		do("job-pause", m{"id": "j"})
		do("job-resume", m{"id": "j"})
		do(end, m{"id": "j"})
		until(func(e event.Event) bool { return e == event.JobStatusChange{ID: "j", Status: event.JobNull} })
	}
	do("quit", nil)
	until(named("SHUTDOWN"))
	if err := order.End(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"STOP", "RESUME", "RESET", "POWERDOWN", "MIGRATION", "MIGRATION_PASS", "JOB_STATUS_CHANGE", "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "SHUTDOWN"} {
		if seen[name] == 0 {
			t.Errorf("it has not said %s", name)
		}
	}
}
