package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/signals"
)

// guarded is a guest with a guardian and a standby.
type guarded struct {
	t        *testing.T
	vm       *qemutest.VM // the guest's first QEMU, on pc
	dir      string       // the standby's
	back     string       // of the QEMU that the standby starts
	sock     string       // the monitor of the guardian
	guardian *program
	standby  *program
}

// guard protects a guest and returns when it is protected.
func guard(t *testing.T, standbyArgs, guardianArgs []string, qemu ...string) *guarded {
	t.Helper()
	needsQEMU(t)
	g := &guarded{t: t, dir: qemutest.Dir(t), back: qemutest.Dir(t)}
	args := slices.Concat([]string{"standby", "-json", "-listen", "unix:" + g.dir + "/s", "-state", g.dir, "-control", "unix:" + g.dir + "/c", "-insecure"}, standbyArgs)
	g.standby = start(t, append(args, same(t, g.back, "pc")...)...)
	g.standby.text("listening")
	g.vm, g.sock = monitored(t, "pc", qemu...)
	qemutest.AwaitSerial(t, g.vm.Dir, 2)
	g.guardian = start(t, slices.Concat([]string{"protect", "-json", "-stay", "-qmp", g.sock, "-to", "unix:" + g.dir + "/s", "-delay", "20ms",
		"-control", "unix:" + g.dir + "/c", "-insecure", "-state", g.vm.Dir, "-stall", "20s", "-silence", "20s"}, guardianArgs)...)
	g.becomes("protected", 1)
	g.standby.checkpoints(2)
	return g
}

// becomes waits until the guardian has said for the n-th time that the guest is in
// a state.
func (g *guarded) becomes(state string, n int) {
	g.t.Helper()
	for i, seen := 0, 0; seen < n; i++ {
		var s struct{ State, Was string }
		if json.Unmarshal(g.guardian.object("guardian", i), &s) == nil && s.State == state && s.Was != state {
			seen++
		}
	}
}

// runsHere checks that the guest runs in its first QEMU and nowhere else.
func (g *guarded) runsHere() {
	g.t.Helper()
	g.vm.AwaitRunState("running")
	qemutest.AwaitSerial(g.t, g.vm.Dir, len(qemutest.Serial(g.vm.Dir))+3)
	if list := qemutest.Serial(g.back); len(list) > 0 {
		g.t.Errorf("it runs at the standby, too: %#x", list)
	}
}

// runsThere checks that the guest runs at the standby, from no earlier than first,
// and ends it.
func (g *guarded) runsThere(first uint32) {
	g.t.Helper()
	g.standby.object("back", 0)
	counts(g.t, g.back, first)
	qemutest.Monitor(g.t, filepath.Join(g.dir, "qmp")).Do(g.t.Context(), "quit", nil, nil)
	g.standby.ends(exitOK)
}

func TestAPlannedEndIsNotADeath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		end  func(g *guarded)
	}{
		{"quit", nil, func(g *guarded) { g.vm.Do(g.t.Context(), "quit", nil, nil) }},
		{"SIGTERM", nil, func(g *guarded) { g.vm.Process().Signal(syscall.SIGTERM) }},
		{"a reset with -no-reboot", []string{"-no-reboot"}, func(g *guarded) { g.vm.Do(g.t.Context(), "system_reset", nil, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := guard(t, nil, nil, c.args...)
			c.end(g)
			g.guardian.ends(exitOK)
			const planned = "the guest has ended as it was meant to"
			if why := string(g.standby.object("forgotten", 0)); strings.Count(why, planned) != 1 {
				t.Errorf("%s: want %q once", why, planned)
			}
			g.standby.object("listening", 1) // for the next guest
			if list := qemutest.Serial(g.back); len(list) > 0 {
				t.Errorf("it was brought back: %#x", list)
			}
		})
	}
}

func TestACrashIsADeath(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, nil)
	seen := qemutest.Serial(g.vm.Dir)
	g.standby.checkpoints(strings.Count(g.standby.output(), "CHECKPOINT_COMMIT") + 3)
	g.vm.Kill()
	g.guardian.ends(exitGuest)
	g.runsThere(seen[len(seen)-1])
}

// Who cleans up after a QEMU that has crashed removes its socket, as a QEMU does that
// ends in good order: a guardian that has heard of neither decides nothing.
func TestAMonitorWhoseSocketIsGoneDecidesNothing(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, nil)
	if err := os.Remove(strings.TrimPrefix(g.sock, "unix:")); err != nil {
		t.Fatal(err)
	}
	g.vm.Kill()
	for end := time.Now().Add(time.Minute); !strings.Contains(g.guardian.errors(), "is not there any more"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the guardian has said %q", g.guardian.errors())
		}
	}
	var a answer
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // it is there, and takes orders
		var err error
		if a, err = tell(t.Context(), socketIn(g.vm.Dir, "guardian"), order{Do: "status"}); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if n := strings.Count(g.guardian.errors(), "is not there any more"); n != 1 {
		t.Errorf("it was said %d times, and asked for its status it says %s", n, a.Status)
	}
	if list := qemutest.Serial(g.back); len(list) > 0 {
		t.Errorf("the guest was brought back: %#x", list)
	}
}

func TestAGuestWhoseStandbyIsLostRunsOnAndIsProtectedAgain(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, nil)
	g.standby.cancel() // it closes its connection, in a checkpoint or not
	g.standby.ends(exitInterrupted)
	g.becomes("unprotected", 1)
	g.runsHere()

	g.standby = start(t, slices.Concat([]string{"standby", "-json", "-listen", "unix:" + g.dir + "/s", "-state", g.dir, "-control", "unix:" + g.dir + "/c", "-insecure"}, same(t, g.back, "pc"))...)
	g.becomes("protected", 2)
	g.standby.checkpoints(3)
	g.runsHere()
	g.vm.Kill()
	g.runsThere(0)
}

func TestAnOperatorPromotesTheStandbyAndTheGuardianStopsItsGuest(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"without an arbiter", "with one"} {
		t.Run(name, func(t *testing.T) {
			var arbiter []string
			if name == "with one" { // it is given back there, since the guardian lives on
				arbiter = []string{"-arbiter", "file:" + filepath.Join(qemutest.Dir(t), "arbiter"), "-term", "1h"}
			}
			g := guard(t, arbiter[:min(len(arbiter), 2)], arbiter)
			start(t, "promote", "-standby", g.dir).ends(exitOK)
			g.becomes("stood-down", 1)
			g.standby.object("back", 0) // after it was stopped here
			if state := g.vm.RunState(); state == "running" {
				t.Errorf("the guest is %s here", state)
			}
			n := len(qemutest.Serial(g.vm.Dir))
			g.runsThere(0)
			if list := qemutest.Serial(g.vm.Dir); len(list) > n {
				t.Errorf("it went on here, too: %d numbers after %d", len(list), n)
			}
		})
	}
}

func TestAStopOfAnOperatorLasts(t *testing.T) {
	t.Parallel()
	g := guard(t, nil, []string{"-delay", "1s"})
	var st guardianStatus
	for end := time.Now().Add(time.Minute); !st.Paused || g.vm.RunState() != "paused"; time.Sleep(10 * time.Millisecond) {
		if !st.Paused && g.vm.RunState() == "running" {
			g.vm.Must("stop", nil) // within a checkpoint it is taken, and has no effect in QEMU
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", st)
		}
		a, err := tell(t.Context(), socketIn(g.vm.Dir, "guardian"), order{Do: "status"})
		if err != nil {
			t.Fatal(err)
		}
		json.Unmarshal(a.Status, &st)
	}
	g.vm.Must("cont", nil)
	n := strings.Count(g.standby.output(), "CHECKPOINT_COMMIT")
	g.standby.checkpoints(n + 1)
	g.runsHere()
}

func TestStatusIsAnswered(t *testing.T) {
	t.Parallel()
	web := []string{"-http", "127.0.0.1:0"}
	g := guard(t, web, web)
	for _, dir := range []string{g.dir, g.vm.Dir} {
		for _, how := range []string{"-json=false", "-json"} {
			p := start(t, "status", "-state", dir, how)
			p.ends(exitOK)
			if out := p.output(); !strings.Contains(out, "generation") {
				t.Errorf("%s", out)
			}
		}
	}
	start(t, "status", "-state", os.TempDir()).ends(exitFailed)
	for p, lines := range map[*program][]string{
		g.standby:  {"lockstep_standby_session 1\n", "lockstep_standby_guardian 1\n", "lockstep_standby_checkpoint_age_seconds ", "lockstep_standby_guest_bytes ", "lockstep_standby_takeovers_total 0\n"},
		g.guardian: {"lockstep_guardian_state{state=\"protected\"} 1\n", "lockstep_guardian_state{state=\"ended\"} 0\n", "lockstep_guardian_standby 1\n"},
	} {
		at := "http://" + p.text("http")
		page := get(t, at+"/metrics")
		for _, line := range lines {
			if !strings.Contains(page, line) {
				t.Errorf("no %q in %s", line, page)
			}
		}
		for path, want := range map[string]string{"/": "generation", "/status": `"generation":`} {
			if text := get(t, at+path); !strings.Contains(text, want) {
				t.Errorf("%s: %s", path, text)
			}
		}
		t.Run("promtool", func(t *testing.T) {
			cmd := exec.Command(require.Program(t, "promtool", "promtool"), "check", "metrics")
			cmd.Stdin = strings.NewReader(page)
			if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A standby that hangs keeps neither the guest nor its writes waiting.
func TestADiskIsWrittenOnWithoutItsStandby(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	g := &guarded{t: t, dir: qemutest.Dir(t), back: qemutest.Dir(t)}
	pri := qemutest.Dir(t)
	copied := emptyDisk(t, g.dir, "disk")
	args := []string{"standby", "-json", "-listen", "unix:" + g.dir + "/s", "-state", g.dir, "-control", "unix:" + g.dir + "/c", "-insecure",
		"-nbd", "unix:" + g.dir + "/n", "-disk", "d0=" + copied}
	cmd := child(t, args...)
	g.sock = "unix:" + filepath.Join(pri, "second")
	g.vm = qemutest.Start(t, pri, append(diskGuest(t, pri, "format=raw,file="+emptyDisk(t, pri, "disk")), "-qmp", g.sock+",server=on,wait=off")...)
	qemutest.AwaitSerial(t, pri, 5)
	g.guardian = start(t, "protect", "-json", "-stay", "-qmp", g.sock, "-to", "unix:"+g.dir+"/s", "-control", "unix:"+g.dir+"/c", "-insecure",
		"-nbd", "unix:"+g.dir+"/n", "-disk", "d0=d0", "-delay", "50ms", "-silence", "2s", "-stall", "20s")
	g.becomes("protected", 1)
	cmd.Process.Signal(signals.Stop)
	g.becomes("unprotected", 1)
	n := len(qemutest.Serial(pri))
	qemutest.AwaitSerial(t, pri, n+2*qemutest.DiskSectors/qemutest.Every+5)
	cmd.Process.Kill()
	cmd.Wait()
	g.standby = start(t, args...)
	g.becomes("protected", 2)
	g.standby.checkpoints(3)
	g.vm.Kill()
	g.guardian.ends(exitGuest)
	g.standby.ends(exitOK)
	goesWith(t, copied, at(t, g.standby.summary().State))
}

func TestACopyOfAnotherSizeIsRefused(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, pri := qemutest.Dir(t), qemutest.Dir(t)
	copied := filepath.Join(dir, "disk")
	if err := os.WriteFile(copied, make([]byte, diskBytes/2), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "standby", "-json", "-listen", "unix:"+dir+"/s", "-state", dir, "-nbd", "unix:"+dir+"/n", "-disk", "d0="+copied)
	s.text("listening")
	sock := "unix:" + filepath.Join(pri, "second")
	qemutest.Start(t, pri, append(diskGuest(t, pri, "format=raw,file="+emptyDisk(t, pri, "disk")), "-qmp", sock+",server=on,wait=off")...)
	p := start(t, "protect", "-json", "-qmp", sock, "-to", "unix:"+dir+"/s", "-nbd", "unix:"+dir+"/n", "-disk", "d0=d0")
	p.ends(exitFailed)
	if out := p.output(); !strings.Contains(out, "disk d0 has 1048576 bytes, and its copy d0 at the standby 524288") {
		t.Errorf("%s", out)
	}
}

func TestADrillBringsItsGuestBack(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	d := start(t, "drill", "-m", "16", "-delay", "50ms", "-timeout", "90s")
	d.ends(exitOK)
	for _, word := range []string{"started ", "protected ", "killed ", "back ", "            its QEMU ran it ", "done "} {
		if !strings.Contains("\n"+d.output(), "\n"+word) {
			t.Errorf("it does not say %q:\n%s", word, d.output())
		}
	}
}

func TestTheDrillsGuestIsTheOneThatTheTestsUse(t *testing.T) {
	p, err := os.ReadFile("../../internal/qemutest/testdata/counter.bin")
	if err != nil || !bytes.Equal(p, drillGuest) {
		t.Errorf("guest.bin is not counter.bin (%v)", err)
	}
}

// An arbiter that cannot be asked stops nobody while the standby answers.
func TestAGuestRunsOnWhileTheArbiterIsDownAndTheStandbyAnswers(t *testing.T) {
	t.Parallel()
	where := qemutest.Dir(t)
	dir := filepath.Join(where, "arbiter")
	g := guard(t, []string{"-arbiter", "file:" + dir, "-holder", "there"}, []string{"-arbiter", "file:" + dir, "-holder", "here", "-term", "5s"})
	if err := os.Rename(dir, dir+"-gone"); err != nil {
		t.Fatal(err)
	}
	n, before := strings.Count(g.standby.output(), "CHECKPOINT_COMMIT"), len(g.guardian.output())
	for end := time.Now().Add(7 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // more than the term
		if strings.Contains(g.guardian.output()[before:], "may give the guest to the standby") {
			t.Fatal("the guest was stopped")
		}
	}
	g.standby.checkpoints(n + 10)
	g.runsHere()
	if err := os.Rename(dir+"-gone", dir); err != nil {
		t.Fatal(err)
	}
	// And a planned end is none to be taken over from.
	g.vm.Do(t.Context(), "quit", nil, nil)
	g.guardian.ends(exitOK)
	g.standby.object("forgotten", 0)
}

func TestAGuardianThatIsStartedAgainFindsItsGuest(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for _, name := range []string{"with an arbiter", "without one"} {
		t.Run(name, func(t *testing.T) {
			g := &guarded{t: t, dir: qemutest.Dir(t), back: qemutest.Dir(t)}
			var arbiter []string
			if name == "with an arbiter" {
				arbiter = []string{"-arbiter", "file:" + filepath.Join(g.dir, "arbiter")}
			}
			g.standby = start(t, slices.Concat([]string{"standby", "-json", "-listen", "unix:" + g.dir + "/s", "-state", g.dir, "-control", "unix:" + g.dir + "/c", "-insecure"},
				arbiter, same(t, g.back, "pc"))...)
			g.standby.text("listening")
			g.vm, g.sock = monitored(t, "pc")
			qemutest.AwaitSerial(t, g.vm.Dir, 2)
			args := slices.Concat([]string{"protect", "-json", "-stay", "-qmp", g.sock, "-to", "unix:" + g.dir + "/s", "-delay", "20ms",
				"-control", "unix:" + g.dir + "/c", "-insecure", "-state", g.vm.Dir, "-stall", "20s", "-silence", "20s"}, arbiter)
			first := child(t, args...)
			g.standby.checkpoints(3)
			first.Process.Kill()
			first.Wait()
			g.standby.object("guardian", 1) // it has noticed
			n := strings.Count(g.standby.output(), "CHECKPOINT_COMMIT")
			g.standby.checkpoints(n + 3)
			g.guardian = start(t, args...)
			g.guardian.object("found", 0)
			g.guardian.object("standby", 0)
			a, err := tell(t.Context(), socketIn(g.vm.Dir, "guardian"), order{Do: "status"})
			if want := `"why":"it was found so: the standby has the guest"`; err != nil || !strings.Contains(string(a.Status), want) {
				t.Errorf("status: %s, %v, want %s", a.Status, err, want)
			}
			g.vm.Kill()
			g.guardian.ends(exitGuest)
			g.runsThere(0)
		})
	}
}

func TestTheControlChannelTakesOurCertificatesOnly(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	ours, stranger := newAuthority(t), newAuthority(t)
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-control", "127.0.0.1:0", "-tls", ours.issue("server"))
	control, uri := s.text("control"), s.text("listening")
	client := ours.issue("client")
	v, sock := monitored(t, "microvm", "-object", "tls-creds-x509,id=tls0,endpoint=client,dir="+client)
	qemutest.AwaitSerial(t, v.Dir, 1)
	args := []string{"protect", "-json", "-stay", "-qmp", sock, "-to", uri, "-control", control, "-delay", "50ms", "-stall", "20s", "-tls-creds", "tls0", "-control-tls"}
	bad := start(t, append(args, stranger.issue("client"))...)
	for end := time.Now().Add(time.Minute); !strings.Contains(s.errors(), "control channel of"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a stranger is not refused")
		}
	}
	bad.cancel()
	bad.ends(exitInterrupted)
	if strings.Contains(s.output(), "guardian") {
		t.Errorf("a stranger was taken for a guardian")
	}
	g := start(t, append(args, client)...)
	s.checkpoints(3)
	v.Do(t.Context(), "quit", nil, nil)
	g.ends(exitOK)
	s.object("forgotten", 0)
}

func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	return string(text)
}
