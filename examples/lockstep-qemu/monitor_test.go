package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// monitored starts a QEMU with a second monitor, for the program.
func monitored(t *testing.T, machine string, args ...string) (*qemutest.VM, string) {
	t.Helper()
	dir := qemutest.Dir(t)
	sock := "unix:" + filepath.Join(dir, "second")
	all := append(qemutest.GuestArgs(t, dir, machine, 16), "-qmp", sock+",server=on,wait=off")
	return qemutest.Start(t, dir, append(all, args...)...), sock
}

func TestCheckSaysWhatStandsAgainstProtection(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	drive := []string{"-drive", "file=" + disk + ",format=raw,if=none,id=d"}
	for _, c := range []struct {
		name    string
		machine string
		args    []string
		caps    []string
		status  int
		problem string
		warning string
	}{
		{"a plain machine", "pc", nil, nil, exitOK, "", ""},
		{"a disk", "pc", append(drive, "-device", "ide-hd,drive=d"), nil, exitOK, "", ""},
		{"a device that does not migrate", "q35", append(drive, "-device", "nvme,drive=d,serial=1"), nil, exitFailed, "nvme", ""},
		{"capabilities", "microvm", nil, []string{"return-path", "multifd"}, exitOK, "", "return-path is on"},
		{"no KVM", "none", nil, nil, exitFailed, "without KVM", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, sock := monitored(t, c.machine, c.args...)
			for _, name := range c.caps {
				v.Must("migrate-set-capabilities", qemutest.Args{"capabilities": []qemutest.Args{{"capability": name, "state": true}}})
			}
			p := start(t, "check", "-json", "-qmp", sock)
			p.ends(c.status)
			var r finding
			if err := json.Unmarshal(p.object("check", 0), &r); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(r.Problems, "\n"); !strings.Contains(got, c.problem) || (got == "") != (c.problem == "") {
				t.Errorf("problems: %q", got)
			}
			if got := strings.Join(r.Warnings, "\n"); !strings.Contains(got, c.warning) || (got == "") != (c.warning == "") {
				t.Errorf("warnings: %q", got)
			}
			disks := "none"
			for _, d := range r.Disks {
				disks = fmt.Sprintf("%s of %d bytes", d.Name, d.Bytes)
			}
			if want := map[bool]string{true: "d of 1048576 bytes", false: "none"}[slices.Contains(c.args, "-drive")]; disks != want {
				t.Errorf("disks: %s, want %s", disks, want)
			}
			human := start(t, "check", "-qmp", sock)
			human.ends(c.status)
			if out := human.output(); strings.Contains(out, "can be protected.") != (c.status == exitOK) ||
				strings.Contains(out, "-disk d=disk0") != (c.status == exitOK && disks != "none") || strings.Contains(out, "not part of a checkpoint") != (disks != "none") {
				t.Errorf("%s", out)
			}
		})
	}
}

func TestProtectStartsAndAStandbyTakesOver(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for i, extra := range [][]string{{"-xbzrle", "-pause"}, nil} {
		if !*long && i > 0 {
			break
		}
		dir, back := qemutest.Dir(t), qemutest.Dir(t)
		s := start(t, append([]string{"standby", "-json", "-listen", "unix:" + filepath.Join(dir, "s"), "-state", dir}, same(t, back, "pc")...)...)
		v, sock := monitored(t, "pc")
		// What stood in the way is set right.
		v.Must("migrate-set-capabilities", qemutest.Args{"capabilities": []qemutest.Args{{"capability": "return-path", "state": true}}})
		seen := qemutest.AwaitSerial(t, v.Dir, 3)
		p := start(t, append([]string{"protect", "-qmp", sock, "-to", s.text("listening"), "-delay", "20ms"}, extra...)...)
		p.ends(exitOK)
		if !strings.Contains(p.output(), "protected") {
			t.Error(p.output())
		}
		s.checkpoints(5)
		v.Kill()
		s.object("back", 0)
		counts(t, back, seen[2])
		qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
		s.ends(exitOK)
	}
}

func TestProtectThatFailsLetsTheGuestRunOn(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	l, uri := qemutest.Listen(t)
	go func() { // somebody who hangs up
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1000))
			c.Close()
		}
	}()
	v, sock := monitored(t, "microvm")
	qemutest.AwaitSerial(t, v.Dir, 1)
	for _, args := range [][]string{{"-to", uri}, {"-to", "tcp:127.0.0.1:1"}, {"-to", uri, "-pause"}} {
		p := start(t, append([]string{"protect", "-json", "-qmp", sock, "-timeout", "20s"}, args...)...)
		p.ends(exitFailed)
		n := len(qemutest.Serial(v.Dir))
		qemutest.AwaitSerial(t, v.Dir, n+5)
		for end := time.Now().Add(10 * time.Second); v.RunState() != "running" && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	l.Close()
}
