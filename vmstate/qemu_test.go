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
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
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
	cmd := exec.Command(path, append([]string{"-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", "stdio"}, args...)...)
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

// do executes a command and returns its answer; events are skipped.
func (q *qemu) do(command string, arguments map[string]any) (answer struct {
	Status  string `json:"status"`
	Running bool   `json:"running"`
}) {
	q.t.Helper()
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if arguments == nil {
		text, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		q.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(q.in, "%s\n", text); err != nil {
		q.t.Fatalf("%s: %v", command, err)
	}
	for q.r.Scan() {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(q.r.Bytes(), &reply); err != nil {
			q.t.Fatalf("%s: %v", command, err)
		}
		if reply.Error != nil {
			q.t.Fatalf("%s: %s", command, reply.Error)
		}
		if reply.Return != nil {
			if err := json.Unmarshal(reply.Return, &answer); err != nil {
				q.t.Fatalf("%s: %v", command, err)
			}
			return answer
		}
	}
	q.t.Fatalf("%s: qemu is gone: %v", command, q.r.Err())
	return answer
}

// bodies keeps RAM sections as they come out again.
type bodies struct{ walker ram.Walker }

type body []byte

func (b body) Put(w *qemufile.Writer) { w.Write(b) }

func (b *bodies) DecodeLive(h vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	if h.Name != "ram" {
		return nil, vmstate.ErrUnknownSection
	}
	var out bytes.Buffer
	w := qemufile.NewWriter(&out)
	err := b.walker.Walk(r, func(rec *ram.Record) error {
		rec.Put(w, b.walker.Format)
		return w.Err()
	})
	w.Flush()
	return body(out.Bytes()), err
}

// What QEMU writes is taken apart and put together again, and QEMU runs on from
// that.
func TestQEMURunsOnFromWhatWePutTogether(t *testing.T) {
	for name, args := range map[string][]string{
		"none":    {"-machine", "none", "-m", "1"},
		"pc":      {"-machine", "pc", "-m", "8", "-device", "virtio-rng-pci", "-device", "isa-serial"},
		"q35":     {"-machine", "q35", "-m", "8", "-smp", "2", "-device", "ich9-usb-uhci1"},
		"microvm": {"-machine", "microvm", "-m", "8"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "vmstate")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
			source := startQEMU(t, args...)
			source.do("migrate", map[string]any{"uri": "exec:cat > " + theirs})
			for {
				s := source.do("query-migrate", nil).Status
				if s == "completed" {
					break
				}
				if s == "failed" {
					t.Fatal("the migration failed")
				}
				time.Sleep(10 * time.Millisecond)
			}
			stream, err := os.ReadFile(theirs)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), &bodies{})
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range doc.Records {
				if rec.Type == vmstate.SectionFull {
					if _, err := rec.Decode(); err != nil {
						t.Error(err)
					}
				}
			}
			f, err := os.Create(ours)
			if err != nil {
				t.Fatal(err)
			}
			w := qemufile.NewWriter(f)
			doc.Put(w)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if again, err := os.ReadFile(ours); err != nil || !bytes.Equal(again, stream) {
				t.Fatalf("put together, it differs: %v", err)
			}
			target := startQEMU(t, append(args, "-incoming", "exec:cat "+ours)...)
			for !target.do("query-status", nil).Running {
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

// A stream whose parts are all our own: a machine of two devices that QEMU's
// machine none has.
func TestQEMULoadsAMachineThatWeSaved(t *testing.T) {
	size, state := uint32(8), [100]byte{}
	copy(state[:], "running")
	var ticks, clock int64 = 1, 2
	var reg vmstate.Registry
	for _, err := range []error{
		reg.Register(vmstate.Entry{Name: "timer", Version: 2}, fieldsFunc(func(f *vmstate.Fields) {
			f.Int64("cpu_ticks_offset", &ticks)
			f.Unused(8)
			f.Int64("cpu_clock_offset", &clock)
		})),
		reg.Register(vmstate.Entry{Name: "globalstate", Version: 1}, fieldsFunc(func(f *vmstate.Fields) {
			f.Uint32("size", &size)
			f.Bytes("runstate", state[:])
		})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "vmstate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "stream")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := qemufile.NewWriter(f)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none", Capabilities: []string{}})
	w.Fail(reg.SaveDevices(w))
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	target := startQEMU(t, "-machine", "none", "-incoming", "exec:cat "+file)
	for !target.do("query-status", nil).Running {
		time.Sleep(10 * time.Millisecond)
	}
}

type fieldsFunc func(*vmstate.Fields)

func (fn fieldsFunc) VMState(f *vmstate.Fields) { fn(f) }
