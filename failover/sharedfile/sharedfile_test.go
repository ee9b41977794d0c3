//go:build unix

package sharedfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SHAREDFILE_TEST_WRITER"); dir != "" {
		writer(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func TestArbiterOverADirectory(t *testing.T) {
	t.Parallel()
	check := failovertest.TestArbiter
	if testing.Short() {
		check = failovertest.TestArbiterInBubble
	}
	check(t, 300*time.Millisecond, func(t *testing.T) failovertest.Two {
		dir := filepath.Join(t.TempDir(), "guest")
		open := func() failover.Arbiter {
			a, err := New(dir)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		return failovertest.Two{A: open(), B: open()}
	})
}

func TestADirectoryIsAStore(t *testing.T) {
	t.Parallel()
	failovertest.TestStore(t, func(t *testing.T) failovertest.Stores {
		dir := filepath.Join(t.TempDir(), "guest")
		open := func() failover.Store {
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		return failovertest.Stores{A: open(), B: open()}
	})
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func advance(t *testing.T, s *Store, r failover.Record, n int) failover.Record {
	t.Helper()
	for range n {
		next := r
		next.Writes++
		if ok, err := s.Swap(t.Context(), r, next); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r = next
	}
	return r
}

// outdate is how many writes leave nothing of the states before them: fewer with -short, since
// each waits for the disk.
func outdate() int {
	if testing.Short() {
		return keep + 4
	}
	return 3 * keep
}

func TestOldStatesAreRemovedAndTheNewestStay(t *testing.T) {
	t.Parallel()
	s := open(t)
	r := advance(t, s, failover.Record{}, outdate())
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) > keep+1 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	// Another host that is 64 writes late cannot take a state for the next one: it is there.
	for n := r.Writes - 63; n <= r.Writes; n++ {
		if _, err := os.Stat(s.state(n)); err != nil {
			t.Errorf("of %d states the one of write %d is gone: %v", r.Writes, n, err)
		}
	}
	if got, err := s.Load(t.Context()); got != r || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, r)
	}
}

// A process that was stopped between its load and its link finds the name of its
// next state free again when that was removed meanwhile.
func TestWriterThatWasStoppedForLongDoesNotSucceed(t *testing.T) {
	t.Parallel()
	s := open(t)
	old := advance(t, s, failover.Record{}, 3)
	next := old
	next.Writes++
	next.Note = "late"
	r := advance(t, s, old, outdate())
	// The check before the link sees that the old state is gone.
	if ok, err := s.Swap(t.Context(), old, next); ok {
		t.Errorf("swapped from a state that is %d writes old (%v)", r.Writes-old.Writes, err)
	}
	// And if it was stopped after that check, the check after the link does: put
	// the old state back to get there.
	if err := os.WriteFile(s.state(old.Writes), old.Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.Swap(t.Context(), old, next); ok || err == nil {
		t.Errorf("swapped from a state that is %d writes old: %v, %v", r.Writes-old.Writes, ok, err)
	}
	if got, err := s.Load(t.Context()); got != r || err != nil {
		t.Errorf("the record became %+v (%v)", got, err)
	}
}

func TestSwapFromAnotherRecordWithTheSameNumberFails(t *testing.T) {
	s := open(t)
	r := advance(t, s, failover.Record{}, 2)
	other := r
	other.Note = "not this one"
	next := r
	next.Writes++
	if ok, err := s.Swap(t.Context(), other, next); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestWhatIsNoRecordIsAnErrorWithItsFile(t *testing.T) {
	for name, content := range map[string]string{
		"empty":        "",
		"cut":          `{"format":"lockstep-arb`,
		"other format": `{"format":"lockstep-arbiter-2","generation":1,"writes":1}`,
		"other number": string(failover.Record{Writes: 9}.Encode()),
		"too long":     strings.Repeat(" ", failover.MaxRecord+1),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if err := os.WriteFile(s.state(1), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := s.Load(t.Context())
			if !errors.Is(err, failover.ErrRecord) || errors.Is(err, failover.ErrRefused) || !strings.Contains(err.Error(), s.state(1)) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestFilesOfOthersAreLeftAlone(t *testing.T) {
	s := open(t)
	for _, name := range []string{"README", "state.1", "state.abcdefghijklmnopqrst", "new.young"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	left := filepath.Join(s.dir, "new.old")
	if err := os.WriteFile(left, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * stale)
	if err := os.Chtimes(left, long, long); err != nil {
		t.Fatal(err)
	}
	advance(t, s, failover.Record{}, 2)
	for _, name := range []string{"README", "state.1", "state.abcdefghijklmnopqrst", "new.young"} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a killed process left is still there: %v", err)
	}
}

// writer is a process that appends to the record for ever, and says after each
// write that was answered which one it was.
func writer(dir string) {
	s, err := Open(dir)
	if err != nil {
		panic(err)
	}
	me := fmt.Sprint(os.Getpid())
	for {
		r, err := s.Load(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		next := r
		next.Writes++
		next.Note = me
		switch ok, err := s.Swap(context.Background(), r, next); {
		case err != nil && strings.Contains(err.Error(), "was written when state"):
			// The others have written that often while this one had no processor: nobody
			// knows whether it was in time, and it is answered to nobody.
		case err != nil:
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		case ok:
			fmt.Println(next.Writes)
		}
	}
}

type writing struct {
	cmd    *exec.Cmd
	out    io.Reader
	errors *strings.Builder
}

func startWriter(t *testing.T, dir string) *writing {
	t.Helper()
	require.Outside(t, require.Processes)
	w := &writing{cmd: exec.Command(os.Args[0]), errors: new(strings.Builder)}
	w.cmd.Env = append(os.Environ(), "SHAREDFILE_TEST_WRITER="+dir)
	w.cmd.Stderr = w.errors
	var err error
	if w.out, err = w.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

// Real processes write at the same time and are killed at any point. No write
// that was answered is lost, none is answered to two, and the record can always be
// read and written.
func TestProcessesAreKilledAtAnyPoint(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	owner := map[uint64]int{}
	var newest uint64
	for range rounds {
		var group sync.WaitGroup
		var mu sync.Mutex
		for range 3 {
			w := startWriter(t, dir)
			group.Go(func() {
				d := json.NewDecoder(w.out)
				var once sync.Once
				for {
					var n uint64
					if d.Decode(&n) != nil {
						break
					}
					once.Do(func() { time.AfterFunc(60*time.Millisecond, func() { w.cmd.Process.Kill() }) })
					mu.Lock()
					if was, ok := owner[n]; ok {
						t.Errorf("state %d was written by %d and by %d", n, was, w.cmd.Process.Pid)
					}
					owner[n] = w.cmd.Process.Pid
					newest = max(newest, n)
					mu.Unlock()
				}
				w.cmd.Wait()
				if w.errors.Len() > 0 {
					t.Errorf("a writer: %s", w.errors)
				}
			})
		}
		group.Wait()
		r, err := s.Load(t.Context())
		if err != nil {
			t.Fatalf("after the kills: %v", err)
		}
		if r.Writes < newest {
			t.Fatalf("the record is state %d, but state %d was answered", r.Writes, newest)
		}
		if pid, ok := owner[r.Writes]; ok && r.Note != fmt.Sprint(pid) {
			t.Errorf("state %d is of %s, answered to %d", r.Writes, r.Note, pid)
		}
		advance(t, s, r, 1)
	}
	if len(owner) == 0 {
		t.Error("nothing was written")
	}
	t.Logf("%d writes answered, the record is at %d", len(owner), newest)
}

// A process that is stopped, wherever it is, holds nothing that others need.
func TestStoppedProcessKeepsNobodyOut(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := startWriter(t, dir)
	go io.Copy(io.Discard, w.out)
	defer w.cmd.Wait()
	defer w.cmd.Process.Kill()
	for range 20 {
		time.Sleep(3 * time.Millisecond)
		if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// It may go on for a moment on another processor.
		var state syscall.WaitStatus
		if _, err := syscall.Wait4(w.cmd.Process.Pid, &state, syscall.WUNTRACED, nil); err != nil || !state.Stopped() {
			t.Fatalf("not stopped: %v, %v", state, err)
		}
		r, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := r
		next.Writes++
		// Its link may have been on the way.
		if ok, err := s.Swap(t.Context(), r, next); err != nil {
			t.Fatal(err)
		} else if !ok {
			if r, err = s.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			advance(t, s, r, 1)
		}
		if err := w.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory is made, and what should be above it is not: on a host where the file system that both
// hosts reach is not mounted it would be that host's alone.
func TestWhatIsAboveADirectoryIsNotMade(t *testing.T) {
	above := t.TempDir()
	if _, err := New(filepath.Join(above, "shared", "db1")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mount what both hosts reach") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(above); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	for range 2 { // of two hosts, or twice by one
		if _, err := New(filepath.Join(above, "db1")); err != nil {
			t.Error(err)
		}
	}
}
