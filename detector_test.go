package lockstep_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// What a run under the race detector is excused for: that the detector has stopped itself, in its own
// words, and nothing else.
func TestOnlyTheDetectorsOwnEndIsExcused(t *testing.T) {
	require.Outside(t, require.Processes)
	const (
		stopped = `ThreadSanitizer: CHECK failed: tsan_rtl.cpp:346 "((exiting || thr->fast_state.epoch() == kEpochLast)) != (0)" (0x0, 0x0) (tid=9736)` + "\n"
		before  = "ok  \texample.org/a\t6.523s\n?   \texample.org/b\t[no test files]\n\texample.org/bare\t\tcoverage: 0.0% of statements\n"
		after   = "ok  \texample.org/d\t0.128s\nFAIL\n"
		faulted = "SIGSEGV: segmentation violation\nPC=0x41bce9 m=0 sigcode=1 addr=0x0\n\ngoroutine 0 gp=0x7d2420 m=0 mp=0x7d3420 [idle]:\n\n" +
			"goroutine 13 gp=0xc00007ef00 m=0 mp=0x7d3420 [running, synctest bubble 1]:\nruntime.systemstack_switch()\n\t/go/src/runtime/asm_amd64.s:516 +0x8\n" +
			"runtime.(*timer).maybeRunChan(0xc000172fd0, 0xc000172f50)\n\t/go/src/runtime/time.go:1465 +0xed\n"
		failed = "FAIL\texample.org/c\t23.223s\n"
	)
	for _, c := range []struct{ what, log, want string }{
		{"it stopped once", before + stopped + failed + after, "example.org/c"},
		{"it stopped twice", before + stopped + failed + stopped + "FAIL\texample.org/e\t1s\n" + after, "example.org/c example.org/e"},
		{"it read what is not there", before + faulted + failed + after, "example.org/c"},
		{"it did so behind a failure", before + "--- FAIL: TestX (0.01s)\n" + faulted + failed + after, ""},
		{"somebody else did so", before + strings.Replace(faulted, "runtime.(*timer).maybeRunChan", "example.org/c.read", 1) + failed + after, ""},
		{"it did so outside a bubble", before + strings.Replace(faulted, ", synctest bubble 1", "", 1) + failed + after, ""},
		{"nothing failed", before, ""},
		{"a test failed", before + "--- FAIL: TestX (0.01s)\n    x_test.go:1: no\nFAIL\n" + failed + after, ""},
		{"a test failed before it stopped", before + "--- FAIL: TestX (0.01s)\n" + stopped + failed + after, ""},
		{"a race was found before it stopped", before + "WARNING: DATA RACE\n" + stopped + failed + after, ""},
		{"another package failed", before + stopped + failed + "--- FAIL: TestX (0.01s)\nFAIL\nFAIL\texample.org/e\t1s\n" + after, ""},
		{"another package failed first", "--- FAIL: TestX (0.01s)\nFAIL\nFAIL\texample.org/e\t1s\n" + before + stopped + failed + after, ""},
		{"another package was not built", before + stopped + failed + "FAIL\texample.org/e [build failed]\n" + after, ""},
		{"a package died without a word", before + failed + after, ""},
		{"it stopped elsewhere", before + strings.Replace(stopped, "tsan_rtl.cpp", "sanitizer_allocator_secondary.h", 1) + failed + after, "example.org/c"},
		{"another one stopped", before + strings.Replace(stopped, "Thread", "Address", 1) + failed + after, ""},
		{"a test speaks its words", before + "x: " + stopped + failed + after, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(log, []byte(c.log), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(".ci/detector", log).Output()
			if (err == nil) != (c.want != "") || c.want != "" && strings.Join(strings.Fields(string(out)), " ") != c.want {
				t.Errorf("it says %q, %v; want %q", out, err, c.want)
			}
		})
	}
}
