package leaks

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// alone is held while the process may open few descriptors.
var alone sync.Mutex

// mostDescriptors is how many descriptors of its own a call may need.
const mostDescriptors = 200

// Starve calls do while the process may open no descriptor more, then one, then two, until do has what it
// needs and returns nil, and checks each time that what do took has been given back. do gives back
// what it got. An error is one of EMFILE, or it is reported: do has another fault then.
// It returns how many descriptors do needed. Nothing else of the process may open any meanwhile.
func Starve(t TB, do func() error, dirs ...string) (needed int) {
	t.Helper()
	if err := do(); err != nil { // and what is opened once in a process is open
		t.Fatalf("without a lack of descriptors: %v", err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC() // of what was opened before nothing more is closed now
	before := Now(t, dirs...)
	for needed = range mostDescriptors {
		err := limited(t, needed, do)
		switch ok := before.Check(t, fmt.Sprintf("a call that may open %d descriptors", needed)); {
		case !ok:
			return needed // each of the next would wait as long
		case err == nil:
			return needed
		case !errors.Is(err, unix.EMFILE):
			t.Errorf("where %d descriptors may be opened: %v", needed, err)
		}
	}
	t.Fatalf("%d descriptors are not enough", mostDescriptors)
	return 0
}

// limited calls do while the process may open n descriptors more.
func limited(t TB, n int, do func() error) error {
	t.Helper()
	alone.Lock()
	defer alone.Unlock()
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatalf("%v", err)
	}
	open := openNumbers(t)
	open = slices.DeleteFunc(open, func(fd int) bool { _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); return err != nil })
	limit := 0
	for left := n; left > 0 || slices.Contains(open, limit); limit++ {
		if !slices.Contains(open, limit) {
			left--
		}
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: old.Max}, nil); err != nil {
		t.Fatalf("%v", err)
	}
	defer func() {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Fatalf("%v", err)
		}
	}()
	return do()
}
