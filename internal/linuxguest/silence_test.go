package linuxguest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The time in which the threads of a machine waited for a CPU is not one in which it said nothing by itself.
func TestAMachineThatWaitsForACPUIsNotTakenForOneThatHasStopped(t *testing.T) {
	type waits = map[string]time.Duration
	const s = time.Second
	for name, c := range map[string]struct {
		before, now waits
		want        time.Duration
	}{
		"all halted": {waits{"a": 7 * s, "b": 90 * s}, waits{"a": 7 * s, "b": 90 * s}, 100 * s},
		"one waits, which is not the one that has waited longest": {waits{"a": 7 * s, "b": 90 * s}, waits{"a": 67 * s, "b": 90 * s}, 40 * s},
		"both wait":                   {waits{"a": 7 * s, "b": 90 * s}, waits{"a": 67 * s, "b": 170 * s}, 20 * s},
		"a new one waits":             {waits{"a": 7 * s}, waits{"a": 7 * s, "c": 30 * s}, 70 * s},
		"one has ended":               {waits{"a": 7 * s, "b": 90 * s}, waits{"a": 8 * s}, 99 * s},
		"a kernel that tells of none": {nil, nil, 100 * s},
	} {
		var m silence
		begun := time.Unix(1000, 0)
		m.begin(begun, c.before)
		if got := m.lasted(begun.Add(100*s), c.now); got != c.want {
			t.Errorf("%s: silent for %v, want %v", name, got, c.want)
		}
	}
}

func TestTheThreadsOfAProcessAreFound(t *testing.T) {
	if _, err := os.Stat("/proc/self/schedstat"); err != nil {
		t.Skip("this kernel does not tell how long a thread waits:", err)
	}
	// The first thread of a process is there as long as the process.
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(threadWaits(os.Getpid())); n == 0 {
		t.Errorf("no thread of this process is found, which has %d", len(tasks))
	}
}
