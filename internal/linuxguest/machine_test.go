package linuxguest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// A stand-in for QEMU is found first in the path: a script that says something on
// the first serial line, and waits.
func standIn(t *testing.T, then string) MachineConfig {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
for a in "$@"; do case $a in file:*.console) console=${a#file:} ;; esac; done
echo "$*" >"$console"
` + then
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(dir, "part")
	if err := os.WriteFile(part, []byte("part "), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return MachineConfig{Name: "m", Dir: dir, Memory: 1, Kernel: "kernel", Initrd: []string{part, part}, TSC: 2_000_000}
}

func TestAMachineSaysAndDies(t *testing.T) {
	require.Outside(t, require.Processes)
	cfg := standIn(t, "exec sleep 600")
	m, err := StartMachine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Said(t.Context(), "tsc_early_khz=2000000"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(cfg.Dir, "m.initrd")); err != nil || string(b) != "part part " {
		t.Errorf("its archives: %q, %v", b, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.Said(ctx, "never"); err == nil {
		t.Error("it has said what it has not")
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	<-m.Ended()
	if err := m.Kill(); err == nil {
		t.Error("killed twice")
	}
}

// The kit may have another emulator than the host.
func TestAMachineIsEmulatedByTheKitsOwnEmulator(t *testing.T) {
	require.Outside(t, require.Processes)
	cfg := standIn(t, "exec sleep 600")
	for _, d := range []string{"root/boot", "root/lib/modules/1", "bin"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"root/boot/vmlinuz-1", "root/lib/modules/1/a.ko"} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := OpenKit(cfg.Dir); err != nil || k.Emulator != "" {
		t.Fatalf("a kit without an emulator: %+v, %v", k, err)
	}
	if err := os.Rename(filepath.Join(cfg.Dir, "qemu-system-x86_64"), filepath.Join(cfg.Dir, "bin/emulator")); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKit(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/usr/bin:/bin")
	cfg.Emulator = k.Emulator
	m, err := StartMachine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Said(t.Context(), "tsc_early_khz=2000000"); err != nil {
		t.Error(err)
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
}

func TestAMachineThatEndsIsNotWaitedFor(t *testing.T) {
	require.Outside(t, require.Processes)
	m, err := StartMachine(standIn(t, "echo no such device >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Said(t.Context(), "never"); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("got %v", err)
	}
}

func TestAMachineThatCannotBeMadeIsAnError(t *testing.T) {
	cfg := standIn(t, "")
	t.Setenv("PATH", t.TempDir())
	if _, err := StartMachine(cfg); err == nil {
		t.Error("started without QEMU")
	}
	cfg.Initrd = []string{filepath.Join(cfg.Dir, "missing")}
	if _, err := StartMachine(cfg); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its archive: %v", err)
	}
}
