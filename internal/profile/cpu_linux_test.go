//go:build !race

package profile

import (
	"context"
	"io"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func used() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// until calls fn until the process has used as much time as d since.
func until(d time.Duration, fn func()) {
	for begin := used(); used()-begin < d; {
		fn()
	}
}

var sink uint64

//go:noinline
func burner() {
	for i := range uint64(1 << 20) {
		sink += i * i
	}
}

// All of the time is seen that the kernel counts, the part of a planted burner and of the
// kernel's own work by their names, and each by the labels of its goroutine. (The race
// detector's own time would be nobody's.)
func TestAProfileTellsWhereTheTimeGoes(t *testing.T) {
	if testing.Short() {
		t.Skip("short: a profile needs nearly half a second of processor time")
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	const long = 400 * time.Millisecond // of each
	b := make([]byte, 1<<20)
	var burnt, read, all time.Duration
	samples, err := CPU(func() {
		begin := used()
		pprof.Do(t.Context(), pprof.Labels("who", "burner"), func(context.Context) { until(long, burner) })
		burnt = used() - begin
		until(long, func() { io.ReadFull(zero, b) })
		all = used() - begin
		read = all - burnt
	})
	if err != nil {
		t.Fatal(err)
	}
	var sum, inBurner, labelled, inRead time.Duration
	for _, s := range samples {
		sum += s.Time
		stack := strings.Join(s.Stack, "\n")
		if strings.Contains(stack, "internal/profile.burner\n") {
			inBurner += s.Time
		}
		if s.Labels["who"] == "burner" {
			labelled += s.Time
		}
		if strings.Contains(s.Stack[0], "yscall") && strings.Contains(stack, "os.(*File).Read\n") {
			inRead += s.Time
		}
	}
	// There are a hundred samples a second of it, and so these are few.
	for _, c := range []struct {
		what      string
		got, want time.Duration
	}{{"all", sum, all}, {"the burner", inBurner, burnt}, {"what is labelled so", labelled, burnt}, {"the kernel's reading", inRead, read}} {
		if ratio := float64(c.got) / float64(c.want); ratio < 0.5 || ratio > 1.5 {
			t.Errorf("%s: %v, the kernel counts %v", c.what, c.got, c.want)
		}
	}
}
