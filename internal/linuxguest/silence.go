package linuxguest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// silence measures for how long a machine has said nothing, without the time in which it could say nothing:
// on a host that is busy its threads wait for a CPU. A machine whose CPUs are halted waits for none.
type silence struct {
	since time.Time
	waits map[string]time.Duration
}

// begin begins to measure. waits is how long each thread of the machine has waited for a CPU.
func (s *silence) begin(now time.Time, waits map[string]time.Duration) {
	s.since, s.waits = now, waits
}

// lasted returns how long the machine has said nothing since begin, less the time that the thread has waited
// which waited longest meanwhile.
func (s *silence) lasted(now time.Time, waits map[string]time.Duration) time.Duration {
	var most time.Duration
	for thread, is := range waits {
		most = max(most, is-s.waits[thread]) // one that is new has waited since it began
	}
	return now.Sub(s.since) - most
}

// waits returns how long each thread of a machine's process has waited for a CPU. It is empty on a kernel that
// does not tell. (Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".)
func (m *Machine) waits() map[string]time.Duration { return threadWaits(m.cmd.Process.Pid) }

func threadWaits(pid int) map[string]time.Duration {
	found := make(map[string]time.Duration)
	files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/schedstat")) // its error is of the pattern
	for _, file := range files {
		b, err := os.ReadFile(file)
		if f := bytes.Fields(b); err == nil && len(f) >= 2 {
			if ns, err := strconv.ParseInt(string(f[1]), 10, 64); err == nil {
				found[file] = time.Duration(ns)
			}
		}
	}
	return found
}
