package control

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

func TestAMonitorSteersAJob(t *testing.T) {
	j := newJob(protect.Protected)
	c := connect(t, NewMonitor(richer{j}, Config{CheckpointDelay: 70 * time.Millisecond}))
	if got := do(t, c, "query-migrate-parameters", nil); got != "map[x-checkpoint-delay:70]" {
		t.Error(got)
	}
	for _, step := range []struct {
		command string
		args    any
		order   string
	}{
		{"job-pause", id{"db1"}, "pause by the monitor"},
		{"job-complete", id{"db1"}, "switchover"},
		{"job-cancel", id{"db1"}, "cancel"},
		{"xen-colo-do-checkpoint", nil, "checkpoint"},
		{"x-colo-lost-heartbeat", nil, "failover"},
		{"protection-failover", nil, "failover"},
		{"protection-fenced", nil, "fenced"},
		{"protection-complete", nil, "complete"},
		{"protection-migrate", nil, "migrate"},
		{"block_resize", map[string]any{"device": "root", "size": int64(1) << 40}, "grow root to 1099511627776"},
		{"block_resize", map[string]any{"node-name": "data", "size": 4096}, "grow data to 4096"},
		{"migrate-set-parameters", map[string]any{"x-checkpoint-delay": 0}, "delay 1ms"},
		{"migrate-set-parameters", map[string]any{"x-checkpoint-delay": 250}, "delay 250ms"},
	} {
		before := len(j.ordered())
		if got := do(t, c, step.command, step.args); got != "map[]" {
			t.Errorf("%s: %s", step.command, got)
		}
		if got := j.ordered()[before:]; len(got) != 1 || got[0] != step.order {
			t.Errorf("%s orders %q, want %s", step.command, got, step.order)
		}
	}
	if got := do(t, c, "query-migrate-parameters", nil); got != "map[x-checkpoint-delay:250]" {
		t.Error(got)
	}
	for _, args := range []map[string]any{{"size": 4096}, {"device": "a", "node-name": "b", "size": 4096}} {
		if got, want := do(t, c, "block_resize", args), "GenericError: "+errWhichDisk.Error(); got != want {
			t.Errorf("%v: %s, want %s", args, got, want)
		}
	}
	j.set(func(in *protect.Info) { in.State = protect.Paused })
	if got := do(t, c, "job-resume", id{"db1"}); got != "map[]" || j.ordered()[len(j.ordered())-1] != "resume" {
		t.Errorf("job-resume: %s, %q", got, j.ordered())
	}
	j.refuse = &protect.StateError{Verb: "checkpoint", State: protect.Paused}
	if got, want := do(t, c, "xen-colo-do-checkpoint", nil), "GenericError: "+j.refuse.Error(); got != want {
		t.Errorf("what the job refuses: %s, want %s", got, want)
	}
}

// A host that can save its guest is told where to, and what came of it is answered.
func TestAHostSavesItsGuest(t *testing.T) {
	var told string
	leaves := false // with the client
	full := errors.New("there is no room")
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{Save: func(ctx context.Context, filename string) error {
		told, leaves = filename, ctx.Done() != nil
		return full
	}}))
	name := map[string]any{"filename": "/srv/db1"}
	if got, want := do(t, c, "protection-save", name), "GenericError: "+full.Error(); got != want || told != "/srv/db1" {
		t.Errorf("%s, told %q", got, told)
	}
	if leaves {
		t.Error("a client that leaves takes its order with it")
	}
	full = nil
	if got := do(t, c, "protection-save", name); got != "map[]" {
		t.Error(got)
	}
	if got := do(t, c, "protection-save", nil); !strings.HasPrefix(got, "GenericError: ") || !strings.Contains(got, "filename") {
		t.Errorf("without a name: %s", got)
	}
	c = connect(t, NewMonitor(newJob(protect.Protected), Config{}))
	if got := do(t, c, "protection-save", name); !strings.HasPrefix(got, "CommandNotFound: ") {
		t.Errorf("a host that cannot: %s", got)
	}
}

func TestAJobWithoutAVerbSaysSo(t *testing.T) {
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{}))
	for command, want := range map[string]string{
		"migrate-set-parameters":   "CommandNotFound: The command migrate-set-parameters has not been found",
		"query-migrate-parameters": "CommandNotFound: The command query-migrate-parameters has not been found",
		"block_resize":             "CommandNotFound: The command block_resize has not been found",
		"quit":                     "CommandNotFound: The command quit has not been found",
		"stop":                     "GenericError: " + errNoGuest.Error(),
		"cont":                     "map[]", // it runs
	} {
		if got := do(t, c, command, nil); got != want {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
	for command, want := range map[string]string{
		"job-cancel":   "GenericError: " + errNotThisJob.Error(),
		"job-finalize": "GenericError: Job 'db1' in state 'ready' cannot accept command verb 'finalize'",
		"job-dismiss":  "GenericError: Job 'db1' in state 'ready' cannot accept command verb 'dismiss'",
	} {
		if got := do(t, c, command, id{"db1"}); got != want {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
}

func TestAMonitorRemembersHowASessionEnded(t *testing.T) {
	j, bus := newJob(protect.Protected), new(event.Bus)
	c := connect(t, NewMonitor(j, Config{Events: bus}))
	if got := do(t, c, "query-colo-status", nil); got != "map[last-mode:primary mode:primary reason:none]" {
		t.Error(got)
	}
	bus.Publish(event.DiskBroken{Mode: event.ModePrimary, Error: "no space"})
	if got := do(t, c, "query-xen-replication-status", nil); got != "map[desc:no space error:true]" {
		t.Error(got)
	}
	bus.Publish(event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitError})
	j.set(func(in *protect.Info) { in.State = protect.Asking; in.Session.Mode = event.ModeNone })
	if got := do(t, c, "query-colo-status", nil); got != "map[last-mode:primary mode:primary reason:processing]" {
		t.Errorf("while it is settled who goes on: %s", got)
	}
	if got := do(t, c, "x-colo-lost-heartbeat", nil); got != "map[]" {
		t.Errorf("an operator cannot settle it: %s", got)
	}
	j.set(func(in *protect.Info) { in.State = protect.Alone; in.Session = nil })
	if got := do(t, c, "query-colo-status", nil); got != "map[last-mode:primary mode:none reason:error]" {
		t.Errorf("afterwards: %s", got)
	}
	if got := do(t, c, "x-colo-lost-heartbeat", nil); got != "GenericError: The feature 'colo' is not enabled" {
		t.Error(got)
	}
	bus.Publish(event.Migration{Status: event.MigrationSetup})
	if got := do(t, c, "query-xen-replication-status", nil); got != "map[error:false]" {
		t.Errorf("of the next session: %s", got)
	}
}

func TestASynchronisationIsAMigration(t *testing.T) {
	j := newJob(protect.Synchronising)
	j.info.Progress = &protect.Progress{Total: 1 << 30, Sent: 300 << 20, Remaining: 724 << 20}
	j.info.Session.Sync = colo.Progress{Passes: 2, Done: 300 << 20, Rate: 1e8, ExpectedDowntime: 30 * time.Millisecond}
	c := connect(t, NewMonitor(j, Config{}))
	var got migrationInfo
	if err := c.Do(t.Context(), "query-migrate", nil, &got); err != nil {
		t.Fatal(err)
	}
	if got.Status != "active" || got.RAM.Transferred != 300<<20 || got.RAM.Remaining != 724<<20 || got.RAM.Total != 1<<30 || got.RAM.MBps != 800 || got.RAM.DirtySyncCount != 2 || *got.ExpectedDown != 30 {
		t.Errorf("%+v %+v", got, got.RAM)
	}
	if got := do(t, c, "query-jobs", nil); got != "[map[current-progress:3.145728e+08 id:db1 status:running total-progress:1.073741824e+09 type:protect]]" {
		t.Error(got)
	}
	j.set(func(in *protect.Info) { in.State, in.Progress = protect.Protected, nil })
	if got := do(t, c, "query-migrate", nil); got != "map[status:colo]" {
		t.Errorf("in step: %s", got)
	}
	j.set(func(in *protect.Info) { in.State, in.Session = protect.Alone, nil })
	if got := do(t, c, "query-migrate", nil); got != "map[]" {
		t.Errorf("alone: %s", got)
	}
}

func TestXCOLOStaysOn(t *testing.T) {
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{}))
	set := func(on bool) string {
		return do(t, c, "migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{{"capability": "x-colo", "state": on}}})
	}
	if got := set(true); got != "map[]" {
		t.Error(got)
	}
	if got := set(false); !strings.HasPrefix(got, "GenericError: a protected guest has x-colo") {
		t.Error(got)
	}
	if got := do(t, c, "query-migrate-capabilities", nil); !strings.Contains(got, "map[capability:x-colo state:true]") {
		t.Error(got)
	}
}

func TestAJobThatHasConcludedIsDismissedOnce(t *testing.T) {
	j, bus := newJob(protect.Concluded), new(event.Bus)
	j.info.LastError = errors.New("the disk is gone")
	var gone int
	bus.SubscribeAll(func(r event.Record) {
		if e, ok := r.Event.(event.JobStatusChange); ok && e.Status == event.JobNull && e.ID == "db1" {
			gone++
		}
	})
	c := connect(t, NewMonitor(j, Config{Events: bus}))
	if got := do(t, c, "query-jobs", nil); !strings.Contains(got, "error:the disk is gone") {
		t.Error(got)
	}
	if got := do(t, c, "job-dismiss", id{"db1"}); got != "map[]" {
		t.Error(got)
	}
	if got := do(t, c, "job-dismiss", id{"db1"}); got != "GenericError: Job not found" {
		t.Error(got)
	}
	if got := do(t, c, "query-jobs", nil); got != "[]" || gone != 1 {
		t.Errorf("%s, said %d times", got, gone)
	}
}

func TestTheProtectionIsDescribedAsJSON(t *testing.T) {
	j := newJob(protect.Protected)
	j.info.LastError, j.info.LastErrorAt = errors.New("no route"), time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	c := connect(t, NewMonitor(j, Config{}))
	got := do(t, c, "query-protection", nil)
	for _, want := range []string{"guest:db1", "host:a", "peer:b", "state:protected", "generation:3", "role:primary", "last-error:no route", "last-error-at:2026-02-03T04:05:06Z", "epoch:12"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
}

// What is ordered is logged, with who and where.
func TestOrdersAreLogged(t *testing.T) {
	var b bytes.Buffer
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{Logger: slog.New(slog.NewTextHandler(&b, nil))}))
	do(t, c, "job-complete", id{"db1"})
	if want := `order=job-complete guest=db1 side=primary generation=3 checkpoint=12`; !strings.Contains(b.String(), want) {
		t.Errorf("%s lacks %s", b.String(), want)
	}
}

// A host's own commands are the monitor's, and are listed and described with it.
func TestAHostAddsCommandsOfItsOwn(t *testing.T) {
	type rack struct {
		Row int `json:"row"`
	}
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{Register: func(c *qmp.Commands) {
		qmp.Register(c, "query-rack", func(_ context.Context, a rack) (rack, error) { return a, nil })
	}}))
	if got := do(t, c, "query-rack", rack{7}); got != "map[row:7]" {
		t.Error(got)
	}
	for _, list := range []string{"query-commands", "query-qmp-schema"} {
		if got := do(t, c, list, nil); !strings.Contains(got, "name:query-rack") {
			t.Errorf("%s lacks it", list)
		}
	}
}

// A command outlives its client, and no arbiter that does not answer: the job has one turn for all.
func TestACommandOutlivesItsClientAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // the client has left
		begun := time.Now()
		err := within(ctx, asking, func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Error("it takes its order with it")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if d := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || d != asking {
			t.Errorf("%v, after %v", err, d)
		}
	})
}
