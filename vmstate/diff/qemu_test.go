package diff_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/diff"
)

// What is said of two streams is what QEMU does with them: whether it loads the
// first into the machine that has written the second, and how it ends otherwise.
func TestQEMUDoesWhatIsSaid(t *testing.T) {
	path := require.Program(t, require.QEMU, qemutest.Binary)
	pc := func(args ...string) []string {
		return append([]string{"-S", "-display", "none", "-nodefaults", "-M", "pc", "-m", "4"}, args...)
	}
	for i, x := range []struct {
		name string
		a, b []string
	}{
		{"the same", pc(), pc()},
		{"a field that A lacks", pc("-global", "PIIX4_PM.x-not-migrate-acpi-index=on"), pc()},
		{"a field that B lacks", pc(), pc("-global", "PIIX4_PM.x-not-migrate-acpi-index=on")},
		{"a block that B lacks", pc("-device", "VGA"), pc()},
		{"a device that A lacks", pc(), pc("-device", "VGA")},
		{"another slot", pc("-device", "virtio-rng-pci,addr=5"), pc("-device", "virtio-rng-pci,addr=6")},
		{"more memory", append(pc(), "-m", "8"), pc()},
		{"footers", pc("-global", "migration.send-section-footer=off"), pc()},
		{"no footers", pc(), pc("-global", "migration.send-section-footer=off")},
		{"no configuration", pc("-global", "migration.send-configuration=off"), pc()},
		{"a processor less", pc("-smp", "2"), pc()},
	} {
		t.Run(x.name, func(t *testing.T) {
			require.Sample(t, i, 4)
			fileA, fileB := record(t, x.a), record(t, x.b)
			findings := diff.Load(state(t, fileA), state(t, fileB))
			said := ""
			for _, f := range findings {
				if f.Certainty == diff.Refusal {
					said = f.Says
					break
				}
			}
			loaded, stderr := load(t, path, fileA, x.b)
			if loaded != (said == "") || !strings.Contains(stderr, said) {
				t.Errorf("said %q; QEMU: loaded %t, %s", said, loaded, stderr)
			}
		})
	}
}

// record migrates a machine to a file.
func record(t *testing.T, args []string) string {
	t.Helper()
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, args...)
	name := filepath.Join(dir, "stream.mig")
	v.Must("migrate", map[string]any{"uri": "exec:cat>" + name})
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		switch status := v.Must("query-migrate", nil)["status"]; {
		case status == "completed":
			v.Kill()
			return name
		case status == "failed", time.Now().After(end):
			t.Fatalf("migration is %v", status)
		}
	}
}

func state(t *testing.T, name string) *diff.State {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := diff.Read(qemufile.NewReader(f), diff.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// load starts a destination and reports whether it took the stream, and what it
// said.
func load(t *testing.T, path, file string, args []string) (loaded bool, stderr string) {
	t.Helper()
	cmd := exec.Command(path, append(args, "-qmp", "stdio", "-incoming", "exec:cat "+file)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	r := bufio.NewScanner(out)
	fmt.Fprintln(in, `{"execute": "qmp_capabilities"}`)
	for ask := true; r.Scan(); {
		var reply struct {
			Return struct{ Status string }
		}
		if json.Unmarshal(r.Bytes(), &reply) == nil && reply.Return.Status != "" {
			if reply.Return.Status != "inmigrate" {
				loaded = true
				break
			}
			time.Sleep(10 * time.Millisecond)
			ask = true
		}
		if ask || strings.Contains(r.Text(), `"return": {}`) {
			fmt.Fprintln(in, `{"execute": "query-status"}`)
			ask = false
		}
	}
	if loaded {
		cmd.Process.Kill()
	}
	io.Copy(io.Discard, out)
	cmd.Wait()
	return loaded, said.String()
}
