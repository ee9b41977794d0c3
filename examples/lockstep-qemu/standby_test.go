package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// primary starts a QEMU that counts.
func primary(t *testing.T, machine string) (*qemutest.VM, []uint32) {
	t.Helper()
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, machine, 16)...)
	return v, qemutest.AwaitSerial(t, dir, 2)
}

// same returns the command line of a QEMU with the machine of primary.
func same(t *testing.T, dir, machine string) []string {
	t.Helper()
	return append([]string{"--", qemutest.Binary}, qemutest.GuestArgs(t, dir, machine, 16)...)
}

// counts checks that a guest in dir counts on, from no earlier than first, and
// returns its first number.
func counts(t *testing.T, dir string, first uint32) uint32 {
	t.Helper()
	list := qemutest.AwaitSerial(t, dir, 8)
	for i := range list[1:] {
		if list[i+1] != list[i]+qemutest.Every {
			t.Fatalf("%#x follows %#x", list[i+1], list[i])
		}
	}
	if list[0] < first {
		t.Errorf("it begins at %#x, before %#x", list[0], first)
	}
	return list[0]
}

func TestAKilledPrimarysGuestGoesOnInAQEMUThatIsStartedForIt(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for i, machine := range []string{"pc", "q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			shorten(t, i, 3)
			dir, back := qemutest.Dir(t), qemutest.Dir(t)
			s := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-keep", "3"}, same(t, back, machine)...)...)
			p, _ := primary(t, machine)
			p.Protect(s.text("listening"), 20*time.Millisecond)
			s.checkpoints(10)
			printed := qemutest.Serial(p.Dir) // before a checkpoint that is still to come
			s.further(4)
			p.Kill()
			s.object("back", 0)
			first := counts(t, back, printed[len(printed)-1])
			if last := qemutest.Serial(p.Dir); first > last[len(last)-1]+2*qemutest.Every {
				t.Errorf("it begins at %#x, and the primary had come to %#x only", first, last[len(last)-1])
			}
			if kept, _ := filepath.Glob(filepath.Join(dir, "checkpoint-*")); len(kept) != 3 {
				t.Errorf("kept: %q", kept)
			}
			qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
			s.ends(exitOK)
			if r := s.summary(); r.Epoch < 14 || r.State != "" || r.Back == 0 {
				t.Errorf("%+v", r)
			} else {
				t.Logf("back after %.0f ms, from checkpoint %d", r.Back, r.Epoch)
			}
		})
	}
}

func TestWithoutAQEMUTheStateIsLeftInAFile(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir)
	p, seen := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(3)
	p.Kill()
	s.ends(exitOK)
	file := s.summary().State
	if file == "" {
		t.Fatal("no state")
	}
	qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "microvm", 16), "-incoming", "exec:cat "+file)...)
	counts(t, back, seen[0])
}

func TestAnInterruptLeavesTheStateAndThePrimaryAlone(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	s := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir}, same(t, qemutest.Dir(t), "microvm")...)...)
	p, _ := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(3)
	s.cancel()
	s.ends(exitInterrupted)
	if f := s.summary().State; f == "" {
		t.Error("no state")
	}
	p.Await("COLO_EXIT")
	p.Must("x-colo-lost-heartbeat", nil)
	n := len(qemutest.Serial(p.Dir))
	qemutest.AwaitSerial(t, p.Dir, n+5)
}

func TestAPrimaryThatMayBeAliveIsNotBroughtBack(t *testing.T) {
	needsQEMU(t)
	for i, c := range []struct {
		name   string
		fence  []string
		status int
	}{
		{"silent", nil, exitUnfenced},
		{"silent and the fence fails", []string{"-fence", "echo still there; false"}, exitUnfenced},
		{"silent and fenced", []string{"-fence", `test "$LOCKSTEP_EPOCH" -gt 2 && kill -9 $PRIMARY`}, exitOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			shorten(t, i, 2)
			dir, back := qemutest.Dir(t), qemutest.Dir(t)
			p, _ := primary(t, "microvm")
			t.Setenv("PRIMARY", jsonInt(p.Process().Pid))
			args := slices.Concat([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-idle-timeout", "3s", "-peer-timeout", "3s"}, c.fence, same(t, back, "microvm"))
			s := start(t, args...)
			p.Protect(s.text("listening"), 20*time.Millisecond)
			s.checkpoints(4)
			stop(p)
			if c.status == exitOK {
				s.object("back", 0)
				qemutest.AwaitSerial(t, back, 10)
				qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
			}
			s.ends(c.status)
			if r := s.summary(); (r.State != "") != (c.status == exitUnfenced) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestAGuestThatDoesNotLoadLeavesTheState(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	// The other machine has other devices.
	s := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir}, same(t, qemutest.Dir(t), "pc")...)...)
	p, _ := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(2)
	p.Kill()
	s.ends(exitGuest)
	if r := s.summary(); r.State == "" {
		t.Errorf("%+v", r)
	} else if _, err := os.Stat(r.State); err != nil {
		t.Error(err)
	}
}

func TestMigrationThatBreaksOffLeavesNothing(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir)
	p, _ := primary(t, "microvm")
	p.Must("migrate-set-parameters", qemutest.Args{"max-bandwidth": 100000})
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.object("event", 0)
	p.Kill()
	s.object("refused", 0)
	s.cancel()
	s.ends(exitInterrupted)
	if r := s.summary(); r.State != "" {
		t.Errorf("%+v", r)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWhoeverSendsNoGuestIsForgotten(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir := qemutest.Dir(t)
	sock := filepath.Join(dir, "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"}) // of a standby that was killed
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	s := start(t, "standby", "-json", "-listen", "unix:"+sock, "-state", dir, "-peer-timeout", "3s")
	for n, say := range []string{"", "GET / HTTP/1.0\r\n\r\n", "QEVM\x00\x00\x00\x03"} {
		s.object("listening", n)
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(say))
		if say == "" {
			conn.Close()
		}
		s.object("refused", n) // the last one is silent
		conn.Close()
	}
	s.object("listening", 3)
	p, _ := primary(t, "microvm")
	p.Protect("unix:"+sock, 20*time.Millisecond)
	s.checkpoints(3)
	p.Kill()
	s.ends(exitOK)
}

func TestAGuestThatWasBroughtBackIsProtectedAgain(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir1, back1, dir2, back2 := qemutest.Dir(t), qemutest.Dir(t), qemutest.Dir(t), qemutest.Dir(t)
	first := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir1}, same(t, back1, "pc")...)...)
	p, _ := primary(t, "pc")
	p.Protect(first.text("listening"), 20*time.Millisecond)
	first.checkpoints(3)
	p.Kill()
	var now struct{ PID int }
	if err := json.Unmarshal(first.object("back", 0), &now); err != nil {
		t.Fatal(err)
	}
	second := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir2}, same(t, back2, "pc")...)...)
	start(t, "protect", "-qmp", "unix:"+filepath.Join(dir1, "qmp"), "-to", second.text("listening"), "-delay", "20ms").ends(exitOK)
	second.checkpoints(5)
	seen := qemutest.AwaitSerial(t, back1, 5)
	second.further(4)
	qemu, err := os.FindProcess(now.PID)
	if err != nil {
		t.Fatal(err)
	}
	qemu.Kill()
	first.ends(exitGuest)
	second.object("back", 0)
	counts(t, back2, seen[4])
	qemutest.Monitor(t, filepath.Join(dir2, "qmp")).Do(t.Context(), "quit", nil, nil)
	second.ends(exitOK)
}

func TestWrongArgumentsAreSaid(t *testing.T) {
	for _, args := range [][]string{
		{}, {"stand"}, {"standby"}, {"standby", "-listen", "127.0.0.1:0"}, {"standby", "-nonsense"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "qemu-system-x86_64"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "--", "sh", "-incoming", "fd:3"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "--", "/nonexistent/qemu"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-disk", "a=b"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-nbd", "127.0.0.1:0"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-nbd", "127.0.0.1:0", "-disk", "a"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-nbd", "127.0.0.1:0", "-disk", "a=b", "-keep", "2"},
		{"relay", "-listen", "127.0.0.1:0", "-state", "x"},
		{"relay", "-listen", "127.0.0.1:0", "-state", "x", "-to", "a,b", "-qmp", "c"},
		{"relay", "-listen", "127.0.0.1:0", "-state", "x", "-to", "a,b", "-sync", "3"},
		{"relay", "-listen", "127.0.0.1:0", "-state", "x", "-to", "a", "-nbd", "127.0.0.1:0", "-disk", "a=b"},
		{"relay", "-listen", "127.0.0.1:0", "-state", "x", "-to", "a", "-to-tls", "/nonexistent"},
		{"protect", "-qmp", "a", "-to", "b", "-disk", "a=b"},
		{"protect", "-qmp", "a", "-to", "b", "-nbd", "c", "-disk", "=b"},
		{"check"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-takeover", "never"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-control", "127.0.0.1:0"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-arbiter", "etcd:x:1"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-takeover", "always", "-arbiter", "file:x"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-control", "127.0.0.1:0", "-tls", "/no/such", "-insecure"},
		{"protect", "-qmp", "a", "-to", "b", "-stay", "-control", "c", "-control-tls", "/no/such", "-insecure"},
		{"protect", "-qmp", "a", "-to", "b", "-control", "c"},
		{"protect", "-qmp", "a", "-to", "b", "-stay", "-control", "c"},
		{"protect", "-qmp", "a", "-to", "b", "-stay", "-stall", "0s"},
		{"promote"}, {"promote", "-standby", "x", "y"}, {"status"}, {"drill", "x"}, {"rehearse"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-rehearse"}, {"standby", "-listen", "127.0.0.1:0", "-state", "a,b"},
		{"protect", "-qmp", "a", "-to", "b:1", "-stay", "-control", "c:1", "-insecure", "-state", "a,b"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "-log", "WARN+1"}, {"relay", "-listen", "127.0.0.1:0", "-state", "x", "-to", "a", "-log", ""},
	} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, terminal{out: &out, err: &err}); status != exitUsage || err.Len() == 0 || out.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q", args, status, out.String(), err.String())
		}
	}
	for want, args := range map[string][]string{
		"no QEMU has a monitor at /no/such": {"check", "-qmp", "/no/such"}, "(start it with -qmp": {"protect", "-qmp", "/no/such", "-to", "localhost:1"},
		"no QEMU has a monitor at /not/here":                          {"protect", "-stay", "-qmp", "/not/here", "-to", "localhost:1"},
		"no standby, relay or guardian whose -state is /no/such runs": {"status", "-state", "/no/such"}, "whose -state is /no/dir": {"promote", "-standby", "/no/dir"},
		"whose -state is /no/where": {"rehearse", "-standby", "/no/where"},
	} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, terminal{out: &out, err: &err}); status != exitFailed || !strings.Contains(err.String(), want) || strings.Count(err.String(), "\n") != 1 {
			t.Errorf("%q: status %d, %q, %q", args, status, out.String(), err.String())
		}
	}
	for _, args := range [][]string{{"-h"}, {"standby", "-h"}, {"relay", "-h"}, {"check", "-h"}, {"protect", "-h"}, {"promote", "-h"}, {"status", "-h"}, {"drill", "-h"}, {"rehearse", "-h"}} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, terminal{out: &out, err: &err}); status != exitOK || out.Len() < 250 || err.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q", args, status, out.String(), err.String())
		}
	}
}
