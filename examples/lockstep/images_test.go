package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/trial"
)

func TestTheSurvivorsDiskIsThatOfItsMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, victim := range []string{trial.Primary, trial.Secondary} {
		for _, place := range []string{killpoint.AtAny, killpoint.AtReceived} {
			s, lines := summed(t, append(short, "-backend", "sim", "-vcpus", "2", "-disk", "256K", "-disk-dir", dir, "-kill", victim, "-kill-at", place)...)
			if s.DiskFigures == nil || s.DiskBlocks < 100 || s.DiskLost+s.DiskCorrupted+s.Lost+s.Contradicted+s.Corrupted != 0 {
				t.Errorf("%s/%s: %+v %+v", victim, place, s, s.DiskFigures)
			}
			for _, key := range []string{`"disk_blocks":`, `"disk_lost":0`, `"disk_corrupted":0`} {
				if !strings.Contains(lines[len(lines)-1], key) {
					t.Errorf("the summary has no %s: %s", key, lines[len(lines)-1])
				}
			}
		}
	}
	for _, side := range []string{trial.Primary, trial.Secondary} {
		st, err := os.Stat(filepath.Join(dir, "lockstep-"+side+".img"))
		if err != nil || st.Size() != 256<<10 {
			t.Errorf("image of the %s: %v, %v", side, st, err)
		}
	}
}

func TestADiskIsHandedOverInOrderToo(t *testing.T) {
	t.Parallel()
	require.Outside(t, require.Processes)
	out, _ := program(t, 0, append(short, "-backend", "sim", "-disk", "256K", "-kill", "none", "-early-resume=false")...)
	if !strings.Contains(out, "its disk has what its memory has written") || !strings.Contains(out, "0 lost, 0 corrupted\n") {
		t.Errorf("%s", out)
	}
}

func TestWithoutADirectoryNoImageStays(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	summed(t, append(short, "-backend", "sim", "-disk", "64K")...)
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("%v is still there (%v)", left, err)
	}
}
