package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
)

// small mounts a file system with as many KB at a new directory.
func small(t *testing.T, kb string) string {
	t.Helper()
	dir := qemutest.Dir(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+kb+"k", "none", dir).CombinedOutput(); err != nil {
		require.Missing(t, require.NetNS, &mountError{string(out)}) // it takes the same rights
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

type mountError struct{ out string }

func (e *mountError) Error() string { return "mount: " + strings.TrimSpace(e.out) }

func TestTheLastCopyIsHeldUntilItIsSafeSomewhere(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for _, c := range []struct {
		name string
		qemu []string
	}{
		{"nowhere to save it", nil},
		{"nor a QEMU that takes it", []string{"--", "false"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			full, dir, back := small(t, "64"), qemutest.Dir(t), qemutest.Dir(t)
			s := start(t, slices.Concat([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", full}, c.qemu)...)
			p, seen := primary(t, "pc")
			p.Protect(s.text("listening"), 20*time.Millisecond)
			s.checkpoints(3)
			var space struct{ Need, Free uint64 }
			if err := json.Unmarshal(s.object("space", 0), &space); err != nil || space.Need < 16<<20 || space.Free > 64<<10 {
				t.Errorf("%+v, %v", space, err)
			}
			p.Kill()
			s.object("holding", 0)
			// A place that is as small, then a QEMU that takes it.
			start(t, "promote", "-standby", full, "-state", filepath.Join(full, "x")).ends(exitOK)
			s.object("holding", 1)
			if c.qemu == nil {
				start(t, "promote", "-standby", full, "-state", dir).ends(exitOK)
				s.ends(exitOK)
				qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "pc", 16), "-incoming", "exec:cat "+filepath.Join(dir, "guest"))...)
				counts(t, back, seen[1])
				return
			}
			start(t, slices.Concat([]string{"promote", "-standby", full, "-state", dir}, same(t, back, "pc"))...).ends(exitOK)
			s.object("back", 0)
			counts(t, back, seen[1])
			qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
			s.ends(exitOK)
		})
	}
}

func TestAHeldCopyIsSavedElsewhereWhenTheStandbyIsEnded(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	full := small(t, "64")
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", full)
	p, _ := primary(t, "pc")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(3)
	p.Kill()
	s.object("holding", 0)
	s.cancel()
	s.ends(exitInterrupted)
	file := s.summary().State
	defer os.Remove(file)
	if n := at(t, file); n == 0 {
		t.Errorf("%s: the guest has not counted", file)
	}
}

func TestSpaceCanBeReserved(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := small(t, "30000")
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-reserve")
	p, _ := primary(t, "pc")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.object("space", 0)
	s.checkpoints(3)
	// Somebody fills the rest.
	rest, err := os.Create(filepath.Join(dir, "rest"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = rest.Write(make([]byte, 64<<10))
	}
	rest.Close()
	p.Kill()
	s.ends(exitOK)
	if n := at(t, s.summary().State); n == 0 {
		t.Error("the guest has not counted")
	}
	if _, err := os.Stat(filepath.Join(dir, reserved)); err == nil {
		t.Error("the reserve is still there")
	}
}

func TestAStandbyThatWasKilledOffersWhatItKept(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	args := slices.Concat([]string{"standby", "-json", "-listen", "unix:" + dir + "/s", "-state", dir, "-keep", "2"}, same(t, back, "pc"))
	cmd := child(t, args...)
	p, seen := primary(t, "pc")
	awaitFile(t, filepath.Join(dir, "s"))
	p.Protect("unix:"+dir+"/s", 50*time.Millisecond)
	var kept []string
	for end := time.Now().Add(time.Minute); len(kept) < 2 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		kept, _ = filepath.Glob(filepath.Join(dir, keptPrefix+"*"))
	}
	cmd.Process.Kill()
	cmd.Wait()
	p.Kill() // and its guest with it

	s := start(t, args...)
	if name := s.text("kept"); filepath.Dir(name) != dir {
		t.Errorf("it offers %s", name)
	}
	start(t, "promote", "-standby", dir).ends(exitOK)
	s.object("back", 0)
	counts(t, back, seen[0])
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

func awaitFile(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not there", name)
		}
	}
}

func TestASilentStrangerHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "unix:"+dir+"/s", "-state", dir)
	s.text("listening")
	begun := migrationBeginning("none")
	for i := range maxStrangers + 3 {
		stranger(t, dir+"/s", begun[:min(4*i, len(begun)-1)])
	}
	p, _ := primary(t, "microvm")
	p.Protect("unix:"+dir+"/s", 20*time.Millisecond)
	s.checkpoints(3)
	p.Kill()
	s.ends(exitOK)
}

func TestALostPrimaryIsNotTakenForDeadWithoutAWord(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	s := start(t, append([]string{"standby", "-json", "-takeover", "ask", "-listen", "unix:" + dir + "/s", "-state", dir}, same(t, back, "microvm")...)...)
	s.text("listening")
	p, seen := primary(t, "microvm")
	p.Protect("unix:"+dir+"/s", 20*time.Millisecond)
	s.checkpoints(3)
	p.Do(t.Context(), "quit", nil, nil)
	var d struct{ Step, Why string }
	if err := json.Unmarshal(s.object("decision", 0), &d); err != nil || d.Step != "wait" || !strings.Contains(d.Why, "closed the connection") {
		t.Errorf("%+v, %v", d, err)
	}
	if list := qemutest.Serial(back); len(list) > 0 {
		t.Errorf("it runs: %#x", list)
	}
	start(t, "promote", "-standby", dir).ends(exitOK) // it was not meant to be quit
	s.object("back", 0)
	counts(t, back, seen[0])
	again := start(t, "promote", "-json", "-standby", dir)
	again.ends(exitFailed)
	if out := again.output(); !strings.Contains(out, `"ordered":false`) || !strings.Contains(out, "runs here already") {
		t.Errorf("%s", out)
	}
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

// Whoever ends a standby beside a guest that runs on is not told to start a second one.
func TestAGuestThatMayRunElsewhereIsLeftWithAWarning(t *testing.T) {
	if theirs, ours := goingOn(false), goingOn(true); !strings.Contains(theirs, "may run on") || strings.Contains(ours, "may run on") {
		t.Errorf("%q of a guest that may run elsewhere, %q of one that is this side's", theirs, ours)
	}
}
