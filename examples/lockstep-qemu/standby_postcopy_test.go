package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// With -postcopy its memory follows it; then it can be protected again.
func TestAKilledPrimarysGuestGoesOnBeforeItsMemory(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	s := start(t, append([]string{"standby", "-json", "-postcopy", "-listen", "127.0.0.1:0", "-state", dir}, same(t, back, "pc")...)...)
	p, _ := primary(t, "pc")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(3)
	printed := qemutest.Serial(p.Dir)
	s.further(2)
	p.Kill()
	s.object("back", 0)
	s.object("followed", 0)
	first := counts(t, back, printed[len(printed)-1])
	if last := qemutest.Serial(p.Dir); first > last[len(last)-1]+2*qemutest.Every {
		t.Errorf("it begins at %#x, and the primary had come to %#x only", first, last[len(last)-1])
	}
	second := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", qemutest.Dir(t))
	start(t, "protect", "-qmp", "unix:"+filepath.Join(dir, "qmp"), "-to", second.text("listening"), "-delay", "20ms").ends(exitOK)
	second.checkpoints(3)
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
	second.ends(exitOK)
}

// A QEMU that dies while the guest's memory still follows it takes the guest with it: that
// is said, nothing is waited for, and the guest is not started once more from what it was.
func TestAGuestWhoseQEMUDiesBeforeItsMemoryHasFollowedIsLost(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	const megabytes = 2048 // take a second to follow
	dir, back, first := qemutest.Dir(t), qemutest.Dir(t), qemutest.Dir(t)
	args := append([]string{"standby", "-json", "-postcopy", "-listen", "127.0.0.1:0", "-state", dir, "--", qemutest.Binary}, qemutest.GuestArgs(t, back, "pc", megabytes)...)
	s := start(t, args...)
	p := qemutest.Start(t, first, qemutest.GuestArgs(t, first, "pc", megabytes)...)
	qemutest.AwaitSerial(t, first, 2)
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(2)
	p.Kill()
	var b struct{ PID int }
	if err := json.Unmarshal(s.object("back", 0), &b); err != nil || b.PID == 0 {
		t.Fatal(b, err)
	}
	qemu, err := os.FindProcess(b.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Kill(); err != nil {
		t.Fatal(err)
	}
	s.ends(exitGuest)
	if out := s.output(); strings.Contains(out, `"followed"`) || strings.Count(out, `"back":{`) != 1 {
		t.Errorf("it has followed, or come back twice: %s", out)
	}
	if r := s.summary(); !strings.Contains(r.Error, "killed") && !strings.Contains(r.Error, "has not followed") {
		t.Errorf("%+v", r)
	}
}

// A QEMU that may not have memory on demand gets all of it first.
func TestAQEMUThatCannotWaitForMemoryGetsItFirst(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	script := filepath.Join(dir, "qemu")
	text := "#!/bin/bash\nexec " + qemutest.Binary + " \"${@/x-postcopy-ram=on/x-postcopy-ram=off}\"\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"standby", "-json", "-postcopy", "-listen", "127.0.0.1:0", "-state", dir, "--", script}, qemutest.GuestArgs(t, back, "pc", 16)...)
	s := start(t, args...)
	p, seen := primary(t, "pc")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(2)
	p.Kill()
	s.object("back", 0)
	counts(t, back, seen[0])
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
}

// A guest whose QEMU does not take it at all is left where it can be had.
func TestAGuestThatMayNotGoBeforeItsMemoryIsLeft(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	other := append([]string{"--", qemutest.Binary}, qemutest.GuestArgs(t, back, "pc", 32)...) // of another size
	s := start(t, append([]string{"standby", "-json", "-postcopy", "-listen", "127.0.0.1:0", "-state", dir}, other...)...)
	p, _ := primary(t, "pc")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(2)
	p.Kill()
	s.ends(exitGuest)
	if s.summary().State == "" {
		t.Error("no state")
	}
}
