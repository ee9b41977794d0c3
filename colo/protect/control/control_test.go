package control

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a job that says what it is told to say, and notes what it is ordered.
type fake struct {
	mu     sync.Mutex
	info   protect.Info
	orders []string
	refuse error

	run chan error // what Run returns
}

func newJob(s protect.State) *fake {
	return &fake{run: make(chan error, 1), info: protect.Info{
		Guest: "db1", Host: "a", Peer: "b", State: s, Role: event.ModePrimary, Generation: 3,
		Session: &colo.Info{State: colo.StateProtected, Mode: event.ModePrimary, LastMode: event.ModePrimary, Reason: event.ExitNone, Epoch: 12},
	}}
}

func (j *fake) set(change func(in *protect.Info)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&j.info)
}

func (j *fake) Query() protect.Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

func (j *fake) order(ctx context.Context, s string) error {
	if ctx.Done() != nil {
		return errors.New("a client that leaves takes its order with it")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.orders = append(j.orders, s)
	return j.refuse
}

func (j *fake) ordered() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.orders)
}

var background = context.Background()

var _ Runner = (*protect.Job)(nil)

func (j *fake) Pause(ctx context.Context, why string) error { return j.order(ctx, "pause "+why) }
func (j *fake) Resume() error                               { return j.order(background, "resume") }
func (j *fake) Complete(ctx context.Context) error          { return j.order(ctx, "complete") }
func (j *fake) Checkpoint() error                           { return j.order(background, "checkpoint") }
func (j *fake) Failover() error                             { return j.order(background, "failover") }
func (j *fake) Fenced() error                               { return j.order(background, "fenced") }
func (j *fake) Switchover(ctx context.Context) error        { return j.order(ctx, "switchover") }
func (j *fake) Run(ctx context.Context) error {
	select {
	case err := <-j.run:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A richer job has the verbs that not every job has.
type richer struct{ *fake }

func (j richer) Cancel(ctx context.Context) error  { return j.order(ctx, "cancel") }
func (j richer) Migrate(ctx context.Context) error { return j.order(ctx, "migrate") }
func (j richer) SetDelay(d time.Duration) error    { return j.order(background, "delay "+d.String()) }

// vm counts pauses as a colo.VM does.
type vm struct {
	mu     sync.Mutex
	pauses int
}

func (v *vm) Pause(context.Context) error  { v.mu.Lock(); defer v.mu.Unlock(); v.pauses++; return nil }
func (v *vm) Resume(context.Context) error { v.mu.Lock(); defer v.mu.Unlock(); v.pauses--; return nil }
func (v *vm) paused() int                  { v.mu.Lock(); defer v.mu.Unlock(); return v.pauses }

// connect serves a monitor and returns a client of it.
func connect(t *testing.T, m *Monitor) *qmp.Client {
	t.Helper()
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	s := m.Server()
	wg.Go(func() { s.ServeConn(ctx, far) })
	c, err := qmp.NewClient(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); cancel(); wg.Wait(); m.Close() })
	return c
}

// do returns what a command answers, as JSON or as the text of its error.
func do(t *testing.T, c *qmp.Client, command string, args any) string {
	t.Helper()
	var out any
	if err := c.Do(t.Context(), command, args, &out); err != nil {
		var e *qmp.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: %v", command, err)
		}
		return string(e.Class) + ": " + e.Desc
	}
	return fmt.Sprint(out)
}

type id struct {
	ID string `json:"id"`
}

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
	full := errors.New("there is no room")
	c := connect(t, NewMonitor(newJob(protect.Protected), Config{Save: func(ctx context.Context, filename string) error {
		told = filename
		return full
	}}))
	name := map[string]any{"filename": "/srv/db1"}
	if got, want := do(t, c, "protection-save", name), "GenericError: "+full.Error(); got != want || told != "/srv/db1" {
		t.Errorf("%s, told %q", got, told)
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
	j.info.LastError = errors.New("no route")
	c := connect(t, NewMonitor(j, Config{}))
	got := do(t, c, "query-protection", nil)
	for _, want := range []string{"guest:db1", "host:a", "peer:b", "state:protected", "generation:3", "role:primary", "last-error:no route", "epoch:12"} {
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

func TestHandlesAreServedForAsLongAsTheJobRuns(t *testing.T) {
	dir := t.TempDir()
	f := flag.NewFlagSet("test", flag.ContinueOnError)
	h := Flags(f)
	if err := f.Parse([]string{"-qmp", "unix:" + filepath.Join(dir, "s"), "-http", freePort(t), "-http-control"}); err != nil {
		t.Fatal(err)
	}
	j := newJob(protect.Alone)
	quit := make(chan struct{})
	done := make(chan error)
	told := make(map[string]string)
	go func() {
		done <- h.Run(t.Context(), j, Config{
			Events: new(event.Bus), Quit: func() { close(quit) },
			Listening: func(handle, address string) { told[handle] = address },
		})
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var c *qmp.Client
	for c == nil {
		var err error
		if c, err = qmp.Dial(ctx, h.QMP); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	if got := do(t, c, "query-name", nil); got != "map[name:db1]" {
		t.Error(got)
	}
	a, err := http.Get("http://127.0.0.1:" + h.HTTP + "/state")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(a.Body); err != nil || !bytes.Contains(b, []byte(`"state":"alone"`)) {
		t.Errorf("%s, %v", b, err)
	}
	a.Body.Close()
	// One who watches does not keep the job from ending.
	if a, err = http.Get("http://127.0.0.1:" + h.HTTP + "/live"); err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if err := c.Do(ctx, "quit", nil, nil); err != nil {
		t.Error(err)
	}
	<-quit
	why := errors.New("enough")
	j.run <- why
	if err := <-done; err != why {
		t.Errorf("Run: %v", err)
	}
	if want := map[string]string{HandleMonitor: h.QMP, HandlePage: "http://127.0.0.1:" + h.HTTP + "/"}; !maps.Equal(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
	if c, err := net.Dial("unix", filepath.Join(dir, "s")); err == nil {
		c.Close()
		t.Error("the monitor is still there")
	}
	c.Close()
	http.DefaultClient.CloseIdleConnections()
}

// A port 0 is one that is free, and the host is told which.
func TestAHostIsToldWhichPortsWereFree(t *testing.T) {
	j := newJob(protect.Alone)
	told := make(map[string]string)
	h := Handles{QMP: "tcp:127.0.0.1:0", HTTP: "0"}
	j.run <- nil
	if err := h.Run(t.Context(), j, Config{Listening: func(handle, address string) { told[handle] = address }}); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(told[HandlePage])
	if err != nil {
		t.Fatal(err)
	}
	for handle, address := range map[string]string{HandleMonitor: told[HandleMonitor], HandlePage: u.Host} {
		if host, port, err := net.SplitHostPort(address); err != nil || host != "127.0.0.1" || port == "0" {
			t.Errorf("the %s is at %q", handle, address)
		}
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

func TestAnAddressThatIsTakenIsNoticedBeforeTheJobBegins(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	j := newJob(protect.Alone)
	path := filepath.Join(t.TempDir(), "s")
	for _, h := range []Handles{{QMP: l.Addr().String()}, {QMP: "unix:" + path, HTTP: l.Addr().String()}} {
		if err := h.Run(t.Context(), j, Config{}); err == nil || !strings.Contains(err.Error(), "control: ") {
			t.Errorf("%+v: %v", h, err)
		}
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Error("a monitor is left over")
	}
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}
