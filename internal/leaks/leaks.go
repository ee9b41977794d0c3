// Package leaks tells what a process holds and did not hold before: descriptors, memory that is
// mapped, goroutines and files. It is for tests of what returns with an error when one of
// its steps has failed: everything that the earlier steps took must have been given back.
package leaks

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A TB is testing.TB, without what a program would link with it.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Patience is how long Check waits until everything was given back: what a goroutine closes may be
// closed a moment after the call has returned.
const Patience = 10 * time.Second

// A Holding is what the process holds at a moment.
type Holding struct {
	dirs  []string
	taken []string // sorted; what is held more than once is there as often

	anonymous uint64 // mapped, in bytes
}

// Now returns what the process holds, and which files are in dirs and below them.
// The test is skipped where there is no /proc.
func Now(t TB, dirs ...string) Holding {
	t.Helper()
	h := Holding{dirs: dirs}
	h.descriptors(t)
	h.mappings(t)
	h.goroutines()
	for _, dir := range dirs {
		h.files(t, dir)
	}
	slices.Sort(h.taken)
	return h
}

// Check reports, as an error of t and by returning false, what the process holds and did not hold at the
// moment of h, if that does not end within Patience. after says what was done meanwhile. The garbage collector, which closes files that nobody
// can reach any more, does not run while it waits.
func (h Holding) Check(t TB, after string) (ok bool) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var left []string
	for end, pause := time.Now().Add(Patience), time.Millisecond; ; pause = min(2*pause, Patience/20) {
		if left = Now(t, h.dirs...).beyond(h); len(left) == 0 {
			return true
		}
		if time.Now().After(end) {
			break
		}
		time.Sleep(pause)
	}
	t.Errorf("after %s the process holds, beyond what it held before:\n\t%s", after, strings.Join(left, "\n\t"))
	return false
}

// beyond returns what h has more than before.
func (h Holding) beyond(before Holding) (more []string) {
	old := before.taken
	for _, one := range h.taken {
		for len(old) > 0 && old[0] < one {
			old = old[1:]
		}
		if len(old) > 0 && old[0] == one {
			old = old[1:]
			continue
		}
		more = append(more, one)
	}
	if h.anonymous > before.anonymous+LargeBytes {
		more = append(more, fmt.Sprintf("%d bytes of anonymous memory", h.anonymous-before.anonymous))
	}
	return more
}

func (h *Holding) add(format string, args ...any) {
	h.taken = append(h.taken, fmt.Sprintf(format, args...))
}

// descriptors adds what is open, but for the two that the poller of the Go runtime opens when it is first needed.
func (h *Holding) descriptors(t TB) {
	t.Helper()
	for _, number := range openNumbers(t) {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", number))
		if err != nil || name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]" {
			continue // the first of them was that of the list itself
		}
		h.add("descriptor %s", name)
	}
}

// openNumbers returns the numbers of the descriptors that are open, and that of the list itself.
func openNumbers(t TB) (numbers []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no list of descriptors: %v", err)
	}
	for _, e := range entries {
		var n int
		if _, err := fmt.Sscan(e.Name(), &n); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// LargeBytes is how much more anonymous memory may be mapped later than before: the Go runtime and the C library
// map some for themselves. A test that looks for a mapping that stays has it larger than that.
const LargeBytes = 256 << 20

// goHeap is where the heap of Go lies in a process of 64 bits.
const goHeap, goHeapEnd = 0xc0 << 32, 0x100 << 32

// mappings adds the mappings of files and devices, and adds up the anonymous ones that can be written: those that
// are beside each other are one to the kernel.
func (h *Holding) mappings(t TB) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skipf("no list of mappings: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil || len(f) < 5 {
			t.Fatalf("no mapping: %q", line)
		}
		switch {
		case len(f) == 5 && strings.HasPrefix(f[1], "rw") && (from < goHeap || from >= goHeapEnd):
			h.anonymous += to - from
		case len(f) > 5 && !strings.HasPrefix(f[5], "[") && !strings.Contains(f[5], ".so"):
			h.add("mapping %s of %s", f[1], f[5])
		}
	}
}

// goroutines adds what runs, by the function that began it.
func (h *Holding) goroutines() {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if at := strings.LastIndex(stack, "created by "); at >= 0 {
			by, _, _ := strings.Cut(stack[at:], "\n")
			by, _, _ = strings.Cut(by, " in goroutine")
			h.add("goroutine %s", by)
		}
	}
}

func (h *Holding) files(t TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			h.add("file %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
}
