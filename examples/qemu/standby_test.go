package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// programEnv makes the test binary the program.
const programEnv = "LOCKSTEP_TEST_QEMU"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// program is a command that runs, and what it has said.
type program struct {
	t      *testing.T
	cancel func()
	done   chan struct{}
	status int

	mu       sync.Mutex
	out, err bytes.Buffer
	more     chan struct{}
}

type lockedWriter struct {
	p *program
	b *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	select {
	case w.p.more <- struct{}{}:
	default:
	}
	return w.b.Write(p)
}

// start runs the program in this process.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	p := &program{t: t, cancel: cancel, done: make(chan struct{}), more: make(chan struct{}, 1)}
	go func() {
		defer close(p.done)
		p.status = run(ctx, args, terminal{out: lockedWriter{p, &p.out}, err: lockedWriter{p, &p.err}})
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("%q said:\n%s%s", args, p.out.String(), p.err.String())
		}
	})
	return p
}

func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// object waits for a JSON line with a key, the n-th that has it, and returns the
// key's value.
func (p *program) object(key string, n int) json.RawMessage {
	p.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		seen := 0
		for _, line := range strings.Split(p.output(), "\n") {
			var m map[string]json.RawMessage
			if json.Unmarshal([]byte(line), &m) == nil && m[key] != nil {
				if seen++; seen > n {
					return m[key]
				}
			}
		}
		select {
		case <-p.more:
		case <-p.done:
			if !strings.Contains(p.output(), `"`+key+`"`) {
				p.t.Fatalf("it has ended with %d before %q", p.status, key)
			}
		case <-limit:
			p.t.Fatalf("no %q", key)
		}
	}
}

func (p *program) text(key string) (s string) {
	p.t.Helper()
	if err := json.Unmarshal(p.object(key, 0), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// checkpoints waits for n of them.
func (p *program) checkpoints(n int) {
	p.t.Helper()
	limit := time.After(60 * time.Second)
	for strings.Count(p.output(), "CHECKPOINT_COMMIT") <= n {
		select {
		case <-p.more:
		case <-p.done:
			p.t.Fatalf("it has ended with %d", p.status)
		case <-limit:
			p.t.Fatalf("%d checkpoints", strings.Count(p.output(), "CHECKPOINT_COMMIT"))
		}
	}
}

// ends waits for the exit status.
func (p *program) ends(status int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.t.Fatal("it does not end")
	}
	if p.status != status {
		p.t.Errorf("exit status %d, want %d", p.status, status)
	}
}

// summary is what the last JSON line says.
func (p *program) summary() (s struct {
	Status int
	Epoch  uint64
	State  string
	Error  string
	Back   float64 `json:"brought-back-ms"`
}) {
	p.t.Helper()
	if err := json.Unmarshal(p.object("standby", 0), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// primary starts a QEMU that counts.
func primary(t *testing.T, machine string) (*qemutest.VM, []uint32) {
	t.Helper()
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, machine, 16)...)
	return v, qemutest.AwaitSerial(t, dir, 2)
}

// same is the command line of a QEMU with the machine of primary.
func same(t *testing.T, dir, machine string) []string {
	t.Helper()
	return append([]string{"--", qemutest.Binary}, qemutest.GuestArgs(t, dir, machine, 16)...)
}

// counts checks that a guest in dir counts on, from no earlier than first, and
// returns its first number.
func counts(t *testing.T, dir string, first uint32) uint32 {
	t.Helper()
	list := qemutest.AwaitSerial(t, dir, 20)
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
	qemutest.KVM(t)
	for _, machine := range []string{"pc", "q35", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			dir, back := qemutest.Dir(t), qemutest.Dir(t)
			s := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-keep", "3"}, same(t, back, machine)...)...)
			p, _ := primary(t, machine)
			p.Protect(s.text("listening"), 20*time.Millisecond)
			s.checkpoints(10)
			printed := qemutest.Serial(p.Dir) // before a checkpoint that is still to come
			s.checkpoints(14)
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
	qemutest.KVM(t)
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
	qemutest.KVM(t)
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
	qemutest.KVM(t)
	for _, c := range []struct {
		name   string
		fence  []string
		status int
	}{
		{"silent", nil, exitUnfenced},
		{"silent and the fence fails", []string{"-fence", "echo still there; false"}, exitUnfenced},
		{"silent and fenced", []string{"-fence", `test "$LOCKSTEP_EPOCH" -gt 2 && kill -9 $PRIMARY`}, exitOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, back := qemutest.Dir(t), qemutest.Dir(t)
			p, _ := primary(t, "microvm")
			t.Setenv("PRIMARY", jsonInt(p.Process().Pid))
			args := slices.Concat([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir, "-idle-timeout", "1s", "-peer-timeout", "1s"}, c.fence, same(t, back, "microvm"))
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
	qemutest.KVM(t)
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
	qemutest.KVM(t)
	dir := qemutest.Dir(t)
	s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", dir)
	p, _ := primary(t, "microvm")
	p.Must("migrate-set-parameters", qemutest.Args{"max-bandwidth": 100000})
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.object("event", 0)
	p.Kill()
	s.ends(exitFailed)
	if r := s.summary(); r.State != "" || !strings.Contains(r.Error, "no guest") {
		t.Errorf("%+v", r)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWrongArgumentsAreSaid(t *testing.T) {
	for _, args := range [][]string{
		{}, {"stand"}, {"standby"}, {"standby", "-listen", "127.0.0.1:0"}, {"standby", "-nonsense"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "qemu-system-x86_64"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "--", "sh", "-incoming", "fd:3"},
		{"standby", "-listen", "127.0.0.1:0", "-state", "x", "--", "/nonexistent/qemu"},
	} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, terminal{out: &out, err: &err}); status != exitUsage || err.Len() == 0 || out.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q", args, status, out.String(), err.String())
		}
	}
	for _, args := range [][]string{{"-h"}, {"standby", "-h"}} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, terminal{out: &out, err: &err}); status != exitOK || out.Len() < 300 || err.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q", args, status, out.String(), err.String())
		}
	}
}
