package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

func TestTheUnitsAreWhatSystemdTakes(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	tool := require.Program(t, "systemd", "systemd-analyze")
	units, err := filepath.Glob("systemd/*.service")
	if err != nil || len(units) != 2 {
		t.Fatal(units, err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	verify := func(t *testing.T, name string, text []byte) (string, error) {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "verify", file).CombinedOutput()
		return string(out), err
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// It looks for the program, which is not installed here.
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/lockstep-qemu "), []byte(program+" "))
		out, err := verify(t, filepath.Base(unit), text)
		if strings.Contains(out, filepath.Base(unit)) {
			t.Errorf("%s: %v\n%s", unit, err, out)
		} else if err != nil {
			require.Missing(t, "systemd", fmt.Errorf("%s: %w: %s", tool, err, out))
		}
		if out, err := verify(t, filepath.Base(unit), bytes.ReplaceAll(text, []byte("Restart="), []byte("Restarts="))); err == nil && !strings.Contains(out, "Restarts") {
			t.Errorf("%s: a word that systemd does not know is not found", unit)
		}
	}
}
