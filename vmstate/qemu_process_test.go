package vmstate_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// qemu is a running QEMU and its monitor.
type qemu struct {
	t  *testing.T
	in io.Writer
	r  *bufio.Scanner
}

func startQEMU(t *testing.T, args ...string) *qemu {
	t.Helper()
	path := require.Program(t, require.QEMU, "qemu-system-x86_64")
	cmd := exec.Command(path, append([]string{"-display", "none", "-nodefaults", "-qmp", "stdio"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		watchdog.Stop()
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("qemu said: %s", stderr.Bytes())
		}
	})
	q := &qemu{t: t, in: in, r: bufio.NewScanner(out)}
	q.r.Buffer(nil, 1<<20)
	q.do("qmp_capabilities", nil)
	return q
}

type arguments = map[string]any

// do executes a command and returns its answer; events are skipped.
func (q *qemu) do(command string, args arguments) json.RawMessage {
	q.t.Helper()
	call := arguments{"execute": command}
	if args != nil {
		call["arguments"] = args
	}
	text, err := json.Marshal(call)
	if err != nil {
		q.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(q.in, "%s\n", text); err != nil {
		q.t.Fatalf("%s: %v", command, err)
	}
	for q.r.Scan() {
		var reply struct{ Return, Error json.RawMessage }
		if err := json.Unmarshal(q.r.Bytes(), &reply); err != nil {
			q.t.Fatalf("%s: %v", command, err)
		}
		if reply.Error != nil {
			q.t.Fatalf("%s: %s", command, reply.Error)
		}
		if reply.Return != nil {
			return reply.Return
		}
	}
	q.t.Fatalf("%s: qemu is gone: %v", command, q.r.Err())
	return nil
}

// status returns the state of the guest or of a migration.
func (q *qemu) status(command string) string {
	q.t.Helper()
	var s struct{ Status string }
	if err := json.Unmarshal(q.do(command, nil), &s); err != nil {
		q.t.Fatal(err)
	}
	return s.Status
}

// waitRunning waits until the guest runs.
func (q *qemu) waitRunning() {
	q.t.Helper()
	for q.status("query-status") != "running" {
		time.Sleep(5 * time.Millisecond)
	}
}

func (q *qemu) enable(capabilities ...string) {
	q.t.Helper()
	var list []arguments
	for _, c := range capabilities {
		list = append(list, arguments{"capability": c, "state": true})
	}
	if list != nil {
		q.do("migrate-set-capabilities", arguments{"capabilities": list})
	}
}

// migrate returns the stream of a migration.
func (q *qemu) migrate() []byte {
	q.t.Helper()
	file := filepath.Join(q.t.TempDir(), "stream")
	q.do("migrate", arguments{"uri": "exec:cat > " + file})
	for {
		switch q.status("query-migrate") {
		case "completed":
			stream, err := os.ReadFile(file)
			if err != nil {
				q.t.Fatal(err)
			}
			return stream
		case "failed":
			q.t.Fatal("the migration failed")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// resume starts a QEMU that loads stream, and waits until its guest runs.
func resume(t *testing.T, stream []byte, capabilities []string, args ...string) *qemu {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stream")
	if err := os.WriteFile(file, stream, 0o666); err != nil {
		t.Fatal(err)
	}
	q := startQEMU(t, append([]string{"-incoming", "defer"}, args...)...)
	q.enable(capabilities...)
	q.do("migrate-incoming", arguments{"uri": "exec:cat " + file})
	q.waitRunning()
	return q
}

// Where the guest counts, in its memory.
const (
	counterAt = 0x500
	bootsAt   = 0x504 // how often it was started
)

// countingBIOS returns a program for the reset vector: it counts how often it is
// started, and then forever. ROM, 64 KiB:
//
//	0000  fa                cli
//	0001  31 c0             xor ax, ax
//	0003  8e d8             mov ds, ax
//	0005  66 ff 06 04 05    inc dword [0x504]
//	000a  66 ff 06 00 05    inc dword [0x500]
//	000f  eb f9             jmp 000a
//	fff0  e9 0d 00          jmp 0000
func countingBIOS(t *testing.T) string {
	rom := make([]byte, 64<<10)
	copy(rom, "\xfa\x31\xc0\x8e\xd8\x66\xff\x06\x04\x05\x66\xff\x06\x00\x05\xeb\xf9")
	copy(rom[0xfff0:], "\xe9\x0d\x00")
	file := filepath.Join(t.TempDir(), "bios")
	if err := os.WriteFile(file, rom, 0o666); err != nil {
		t.Fatal(err)
	}
	return file
}

// word returns four bytes of the guest's memory.
func (q *qemu) word(addr int) uint32 {
	q.t.Helper()
	var text string
	if err := json.Unmarshal(q.do("human-monitor-command", arguments{"command-line": fmt.Sprintf("xp /1wx %#x", addr)}), &text); err != nil {
		q.t.Fatal(err)
	}
	var at uint64
	var n uint32
	if _, err := fmt.Sscanf(text, "%x: 0x%x", &at, &n); err != nil {
		q.t.Fatalf("%q: %v", text, err)
	}
	return n
}

// waitCounted waits until the guest has counted beyond n.
func (q *qemu) waitCounted(n uint32) uint32 {
	q.t.Helper()
	for {
		if c := q.word(counterAt); c > n {
			return c
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantRunsOn checks that the guest counts on from n, and was not started anew.
func (q *qemu) wantRunsOn(n uint32) {
	q.t.Helper()
	if c := q.word(counterAt); c < n {
		q.t.Errorf("the guest has counted to %d, and was at %d", c, n)
	}
	q.waitCounted(q.waitCounted(n))
	if boots := q.word(bootsAt); boots != 1 {
		q.t.Errorf("the guest was started %d times", boots)
	}
}
