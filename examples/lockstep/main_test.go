package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/kvm"
)

var long = flag.Bool("long", false, "also the runs that take ten seconds each")

// The test binary is also the sides of the runs that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == trial.SideArgument {
		if err := sideMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // or each side takes a second to end
	// Runs wait for their processes, most of the time.
	if err := require.Parallel(4); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// patient has a run wait for a side for as long as a machine may have no CPU for it. A side that
// is killed is noticed at once all the same: it costs time only where one is stopped for good.
var patient = []string{"-lost-after", "1m"}

// short makes a run small and quick.
var short = []string{patient[0], patient[1], "-interval", "10ms", "-checkpoints", "3"}

// program runs the program and returns what it printed.
func program(t *testing.T, wantStatus int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := lockstep(context.Background(), args, &out, &errs, false); got != wantStatus {
		t.Fatalf("lockstep %s: exit status %d, want %d\n%s\n%s", strings.Join(args, " "), got, wantStatus, errs.String(), out.String())
	}
	return out.String(), errs.String()
}

// summed runs the program with -json and returns its summary and all lines. A run that ends
// without a verdict because the machine stood still is run again.
func summed(t *testing.T, args ...string) (trial.Summary, []string) {
	t.Helper()
	require.Outside(t, require.Processes)
	args = slices.Concat([]string{"-json"}, patient, args)
	var out, errs bytes.Buffer
	const tries = 3
	for try := 1; lockstep(context.Background(), args, &out, &errs, false) != 0; try++ {
		said := fmt.Sprintf("lockstep %s: try %d of %d:\n%s", strings.Join(args, " "), try, tries, errs.String())
		if try == tries || !strings.Contains(errs.String(), "(this machine stood still for ") {
			t.Fatalf("%s\n%s", said, out.String())
		}
		t.Log(said)
		out.Reset()
		errs.Reset()
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Fatalf("a line that is not JSON: %s", l)
		}
	}
	last := struct {
		Summary trial.Summary `json:"summary"`
	}{trial.Summary{Repeated: new(trial.Repeated), SeriesFigures: new(trial.SeriesFigures), DiskFigures: new(trial.DiskFigures), LateFigures: new(trial.LateFigures)}}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	return last.Summary, lines
}

func TestEitherSideMayBeKilledAnywhereAndNothingIsLost(t *testing.T) {
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		survivor := map[string]string{trial.Primary: trial.Secondary, trial.Secondary: trial.Primary}[victim]
		for i, place := range killpoint.Places {
			if place == killpoint.AtEach {
				continue // see TestEachStepMayBeTheLast
			}
			t.Run(victim+"/"+place, func(t *testing.T) {
				t.Parallel()
				mode := modes[i%len(modes)]
				s, _ := summed(t, append(short, "-backend", "sim", "-mode", mode, "-kill", victim, "-kill-at", place)...)
				if s.Survivor != survivor || s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 ||
					s.Checkpoints < 3 || s.COLOExit != "error" || s.Failover <= 0 || s.Inputs < trial.TalkOn || s.Mode != mode {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// A side is killed, or stopped until the other has gone on and then woken, before
// each step of a checkpoint.
func TestEachStepMayBeTheLast(t *testing.T) {
	if !*long {
		t.Skip("-long was not given")
	}
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		for i, signal := range signals {
			t.Run(victim+"/"+signal, func(t *testing.T) {
				t.Parallel()
				s, _ := summed(t, "-backend", "sim", "-mem", "8M", "-mode", modes[i%len(modes)], "-kill", victim, "-kill-at", killpoint.AtEach, "-signal", signal, "-lost-after", "2s")
				if s.Survivor == victim || s.Lost+s.Contradicted+s.Corrupted != 0 || s.Repeated == nil || s.Runs != len(killpoint.Steps[victim]) || s.Clean != s.Runs || s.Inside != s.Runs {
					t.Errorf("%+v %+v", s, s.Repeated)
				}
			})
		}
	}
}

func TestASideThatIsStoppedForAMomentEndsNothing(t *testing.T) {
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		for i, place := range killpoint.Places {
			if place == killpoint.AtEach && !*long {
				continue
			}
			t.Run(victim+"/"+place, func(t *testing.T) {
				t.Parallel()
				s, _ := summed(t, append(short, "-backend", "sim", "-mode", modes[i%len(modes)], "-kill", victim, "-kill-at", place,
					"-signal", trial.SignalStop, "-stop-for", "300ms")...)
				if s.Survivor != trial.Primary || s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 || s.COLOExit != "request" {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// A side that is stopped for longer than the other waits finds, when it is woken,
// that the guest is not its any more, and says nothing but the one frame that it may have
// been about to write, having asked.
func TestASideThatIsStoppedForLongComesBackAndSaysNothingNew(t *testing.T) {
	if !*long {
		t.Skip("-long was not given; it takes ten seconds until a side is lost to the other")
	}
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		survivor := map[string]string{trial.Primary: trial.Secondary, trial.Secondary: trial.Primary}[victim]
		for i, place := range killpoint.Places {
			if place == killpoint.AtEach {
				continue // see TestEachStepMayBeTheLast
			}
			t.Run(victim+"/"+place, func(t *testing.T) {
				t.Parallel()
				s, _ := summed(t, append(short, "-interval", "20ms", "-lost-after", "10s", "-backend", "sim", "-mode", modes[i%len(modes)], "-kill", victim, "-kill-at", place, "-signal", trial.SignalStop)...)
				if s.Survivor != survivor || s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 || s.LateFigures.LateFrames > 1 {
					t.Errorf("%+v %+v", s, s.LateFigures)
				}
			})
		}
	}
}

func TestKVMGuestSurvivesItsPrimary(t *testing.T) {
	t.Parallel()
	require.Usable(t, require.KVM, kvm.Probe)
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		s, _ := summed(t, append(short, "-backend", "kvm", "-vcpus", "2", "-diverge", "30", "-disk", "256K", "-kill", victim)...)
		if s.Backend != "kvm" || s.Survivor == victim || s.Released == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 ||
			s.DiskBlocks == 0 || s.DiskLost+s.DiskCorrupted != 0 {
			t.Errorf("%+v %+v", s, s.DiskFigures)
		}
	}
}

func TestAnOrderedHandoverIsARequestAndTheSecondaryDoesNotGoOn(t *testing.T) {
	t.Parallel()
	s, lines := summed(t, append(short, "-backend", "sim", "-kill", "none")...)
	if s.Survivor != trial.Primary || s.COLOExit != "request" || s.Failover != 0 {
		t.Errorf("%+v", s)
	}
	granted, states := map[string]int{}, map[string]string{}
	for _, l := range lines {
		var c struct {
			trial.Claimed
			Side, Event string
			Data        struct{ State string }
		}
		if err := json.Unmarshal([]byte(l), &c); err != nil {
			t.Fatal(err)
		}
		if c.Answer.Granted {
			granted[c.Claim.Side]++
		}
		if c.Event == (event.JobStatusChange{}).Name() {
			states[c.Side] += c.Data.State + " "
		}
	}
	if granted[trial.Secondary] != 0 || granted[trial.Primary] < 2 || !strings.HasSuffix(states[trial.Secondary], "waiting concluded ") || strings.Contains(states[trial.Secondary], "taking-over") ||
		!strings.HasSuffix(states[trial.Primary], "protected alone cancelled concluded ") {
		t.Errorf("granted: %v; states: %q", granted, states)
	}
}

func TestGuestsThatDifferAreStillOneGuestToTheClient(t *testing.T) {
	t.Parallel()
	s, _ := summed(t, append(short, "-backend", "sim", "-diverge", "100", "-vcpus", "2", "-early-resume=false")...)
	if s.Lost+s.Contradicted+s.Corrupted != 0 || s.VCPUs != 2 {
		t.Errorf("%+v", s)
	}
}

func TestGuestsThatAgreeAreNotHeldUntilTheirCheckpoint(t *testing.T) {
	// A side that has no CPU for as long as a packet may wait for its like is taken for one
	// that differs. That is not so each time.
	const tries = 3
	var s trial.Summary
	for try := 1; ; try++ {
		s, _ = summed(t, "-backend", "sim", "-diverge", "0", "-interval", "2s", "-checkpoints", "1")
		if s.Causes[event.CauseTimer] == uint64(s.Checkpoints) && s.Diverged == 0 {
			break
		}
		said := fmt.Sprintf("%d checkpoints for %v, the guests differed %d times", s.Checkpoints, s.Causes, s.Diverged)
		if try == tries {
			t.Fatal(said)
		}
		t.Log(said)
	}
	// At most those can wait for a checkpoint that the guests were apart at it.
	if s.AtMatch == 0 || s.AtMatch != s.Matched || s.AtMatch < s.AtCheckpoint || s.Inputs < trial.TalkOn {
		t.Errorf("%d left at a match, %d at a checkpoint, %d inputs were answered", s.AtMatch, s.AtCheckpoint, s.Inputs)
	}
}

func TestGuestsThatDifferHaveCheckpointsOnDemand(t *testing.T) {
	t.Parallel()
	s, _ := summed(t, "-backend", "sim", "-diverge", "10", "-interval", "1m", "-checkpoints", "5", "-kill", "secondary", "-kill-at", "received")
	if s.Causes[event.CauseDivergence] == 0 || s.Causes[event.CauseTimer] != 0 || s.Diverged == 0 || s.AtCheckpoint == 0 || s.Lost+s.Contradicted+s.Corrupted != 0 {
		t.Errorf("%+v", s)
	}
}

func TestContinuousComparesNothing(t *testing.T) {
	t.Parallel()
	s, _ := summed(t, append(short, "-backend", "sim", "-mode", "continuous", "-diverge", "50")...)
	if s.Matched+s.AtMatch+s.Diverged != 0 || s.AtCheckpoint == 0 || s.LatencyP99 != 0 || s.Causes[event.CauseTimer] != uint64(s.Checkpoints) {
		t.Errorf("%+v", s)
	}
}

func TestRepeatedRunsAreSummedUp(t *testing.T) {
	t.Parallel()
	s, lines := summed(t, "-backend", "sim", "-mem", "8M", "-repeat", "3", "-seed", "11")
	if s.Repeated == nil || s.Runs != 3 || s.Clean != 3 || s.FailoverMax < s.FailoverP50 {
		t.Errorf("%+v %+v", s, s.Repeated)
	}
	runs := 0
	for _, l := range lines {
		if strings.HasPrefix(l, `{"run":`) {
			runs++
		}
	}
	if runs != 3 {
		t.Errorf("%d lines of runs", runs)
	}
}

func TestTheSummaryHasTheKeysThatScriptsReadAndTheEventsAreQMP(t *testing.T) {
	t.Parallel()
	_, lines := summed(t, append(short, "-backend", "sim")...)
	var last map[string]map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`backend vcpus mem_bytes checkpoints causes dirty_pages_p50 pause_us_p50 pause_us_p99 stopped_us_p50 stopped_us_p99
		transfer_us_p50 commit_us_p50 checkpoints_per_second failover_ms released lost duplicated contradicted corrupted survivor colo_exit
		mode inputs matched diverged released_at_match released_at_checkpoint latency_us_p50 latency_us_p99`) {
		if _, ok := last["summary"][key]; !ok {
			t.Errorf("the summary has no %s", key)
		}
		delete(last["summary"], key)
	}
	if len(last["summary"]) > 0 {
		t.Errorf("the summary has more: %v", last["summary"])
	}
	seen := make(map[string]bool)
	for _, l := range lines {
		var e struct {
			Side, Event string
			Timestamp   *struct{ Seconds, Microseconds int64 }
		}
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatal(err)
		}
		if e.Event != "" && (e.Timestamp == nil || e.Side == "") {
			t.Errorf("no QMP event: %s", l)
		}
		seen[e.Side+" "+e.Event] = true
	}
	for _, want := range []string{"primary STOP", "primary RESUME", "primary CHECKPOINT_COMMIT", "secondary COLO_EXIT", "secondary FAILOVER"} {
		if !seen[want] {
			t.Errorf("no %s", want)
		}
	}
}

func TestTaggedFramesAreComparedAndNoneIsLost(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"colo", "continuous"} {
		// A side that has no CPU for a moment lets no packet leave at a match: so it is not over
		// after a few checkpoints.
		s, _ := summed(t, append(short, "-backend", "sim", "-vlan", "7", "-diverge", "20", "-checkpoints", "30", "-mode", mode)...)
		if mode == "colo" && s.AtMatch == 0 {
			t.Errorf("nothing was compared: %+v", s)
		}
	}
}

func TestWrongArgumentsGetOneLineAndStatus2(t *testing.T) {
	for _, args := range []string{
		"-backend xen", "-mode fast", "-mode", "-vcpus 0", "-vcpus 9", "-vcpus x", "-mem 1M", "-mem 4097", "-mem 99999999999G", "-mem x",
		"-dirty -1", "-dirty 1000000", "-dirty 100000 -mem 16M", "-interval 0s", "-interval 2h", "-checkpoints 0", "-kill both", "-kill-at never",
		"-kill none -kill-at ram", "-kill none -kill-at each", "-kill secondary -kill-at capture", "-lost-after 10ms", "-lost-after 1h", "-throttle 101", "-keep 8", "-keep -2", "-set 7", "-set -1", "-pace 0", "-pace 2s", "-throttle NaN", "-repeat 0", "-repeat 2 -timeline x.svg", "-repeat 2 -qmp unix:/tmp/x", "-kill-at each -qmp unix:/tmp/x", "-qmp localhost:65535", "-diverge 101", "-diverge -1", "-diverge NaN",
		"-seed -1", "-frobnicate", "stray",
		"-vlan -1", "-vlan 4095",
		"-failovers -1", "-switchover -1", "-failovers 1 -term 1ms", "-term 1ms", "-failovers 1 -kill primary", "-switchover 1 -kill-at ram", "-failovers 1 -timeline x.svg", "-failovers 1 -repeat 2 -qmp unix:/tmp/x", "-repeat 2 -http 0", "-http x", "-http 65535", "-http localhost", "-http-control", "-failovers 1 -http-control",
		"-disk 1", "-disk 1000000", "-disk 32K", "-disk 1G", "-disk x", "-disk-dir /tmp", "-disk 4M -disk-dir /no/such",
	} {
		out, errs := program(t, 2, strings.Fields(args)...)
		if out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "lockstep: ") {
			t.Errorf("%s: stdout %q, stderr %q", args, out, errs)
		}
	}
}

func TestHelpExplainsEveryFlag(t *testing.T) {
	out, errs := program(t, 0, "-h")
	for _, name := range strings.Fields("backend mode vcpus mem dirty set interval checkpoints kill kill-at repeat json timeline diverge early-resume seed vlan disk disk-dir signal stop-for lost-after throttle keep qmp http http-control failovers switchover term") {
		if !strings.Contains(out, "  -"+name+" ") {
			t.Errorf("no word of -%s", name)
		}
	}
	if errs != "" {
		t.Errorf("stderr: %s", errs)
	}
}

// A picture that cannot be written is known before there is a run that it would be of.
func TestAPictureThatCannotBeWrittenEndsItBeforeItBegins(t *testing.T) {
	name := t.TempDir() + "/none/run.svg"
	if out, errs := program(t, 1, "-backend", "sim", "-timeline", name); out != "" || !strings.Contains(errs, name) {
		t.Errorf("%q and %q", out, errs)
	}
}

func TestASideThatCannotStartIsReportedWithItsReason(t *testing.T) {
	require.Outside(t, require.Processes)
	o, err := parseOptions(append(short, "-backend", "sim"), nil)
	if err != nil {
		t.Fatal(err)
	}
	o.Mem = 4 << 30 // more than a guest can have
	var out bytes.Buffer
	r := trial.New(o.Config, "sim", 1, &trial.Printer{W: &out, Quiet: true})
	if err := r.Do(context.Background()); err == nil || !strings.Contains(err.Error(), "bytes of memory") {
		t.Errorf("error %v", err)
	}
}

func TestAnInterruptedRunLeavesNothingBehind(t *testing.T) {
	require.Outside(t, require.Processes)
	ctx, cancel := context.WithCancel(context.Background())
	o, err := parseOptions(append(short, "-backend", "sim", "-checkpoints", "1000"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := trial.New(o.Config, "sim", 1, &trial.Printer{Quiet: true, JSON: true, W: writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte(`"epoch":2`)) {
			cancel()
		}
		return out.Write(p)
	})})
	if err := r.Do(ctx); err != context.Canceled {
		t.Errorf("error %v", err)
	}
	for side, pid := range r.PIDs() {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Signal(syscall.Signal(0))
		}
		if !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("the %s was not waited for (%v)", side, err)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
