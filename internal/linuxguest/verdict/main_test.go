package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// verdict runs the command over a log.
func verdict(t *testing.T, log string, args ...string) (string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err := run(append(args, name), &out)
	return out.String(), err
}

func TestFailuresAreTheTestsOfTheLogAndNoOthers(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"all passed": {`
=== RUN   TestA
--- PASS: TestA (0.00s)
PASS
`, ""},
		"one failed": {`
=== RUN   TestA
    a_test.go:1: wrong
--- FAIL: TestA (0.00s)
=== RUN   TestB
--- SKIP: TestB (0.00s)
FAIL
`, "TestA failed\n"},
		"a part failed, and a part of that": {`
=== RUN   TestA
=== RUN   TestA/one
=== RUN   TestA/one/more
=== RUN   TestA/two
--- FAIL: TestA (1.00s)
    --- FAIL: TestA/one (1.00s)
        --- FAIL: TestA/one/more (1.00s)
    --- PASS: TestA/two (0.00s)
FAIL
`, "TestA/one/more failed\n"},
		"spoilt, and in doubt": {`
=== RUN   TestA
    world_linux_test.go:9: spoilt by the emulator: TestA: machine x: a triple fault
--- FAIL: TestA (0.00s)
=== RUN   TestB
    hosts_linux_test.go:9: the guest does not get on
    world_linux_test.go:9: in doubt: TestB: the guest does not get on
--- FAIL: TestB (0.00s)
FAIL
`, "TestA spoilt\nTestB doubtful\n"},
		"what others print is no result": {`
=== RUN   TestA
    state_linux_test.go:60: --- FAIL: TestInside (200.50s)
    world_linux_test.go:180: console of machine adapter:
        === RUN   TestInside
        --- FAIL: TestInside (200.50s)
            --- FAIL: TestInside/part (112.06s)
        --- FAIL: TestA (0.00s)
    world_linux_test.go:95: in doubt: TestA: the guest was late
--- FAIL: TestA (0.00s)
FAIL
`, "TestA doubtful\n"},
		"what others print is no evidence": {`
=== RUN   TestA
    world_linux_test.go:180: console of machine x:
        world_linux_test.go:95: in doubt: TestA: the guest was late
        spoilt by the emulator: TestA: I am the guest
    state_linux_test.go:60: spoilt by the emulator: TestA: I am the guest
=== RUN   TestB
    world_linux_test.go:95: spoilt by the emulator: TestA: it is not of this test
--- FAIL: TestA (0.00s)
--- FAIL: TestB (0.00s)
FAIL
`, "TestA failed\nTestB failed\n"},
		"tests take turns": {`
=== RUN   TestA
=== PAUSE TestA
=== RUN   TestB
=== PAUSE TestB
=== CONT  TestA
=== CONT  TestB
=== NAME  TestA
    world_linux_test.go:95: in doubt: TestA: the guest was late
=== NAME  TestB
    b_test.go:1: wrong
--- FAIL: TestB (0.00s)
--- FAIL: TestA (0.00s)
FAIL
`, "TestA doubtful\nTestB failed\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := verdict(t, c.log)
			if err != nil || got != c.want {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// A run that has not come to its end may hide any failure behind one that is excused.
func TestALogWithoutAnEndIsNoRun(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"empty":   {"", "no test has run"},
		"a build": {"# github.com/gocolo/lockstep\nx.go:1:1: undefined: x\nFAIL\tpkg [build failed]\n", "no test has run"},
		"a panic": {`
=== RUN   TestA
    world_linux_test.go:95: in doubt: TestA: the guest was late
--- FAIL: TestA (0.00s)
panic: test timed out after 30m0s
FAIL	pkg	1800.0s
`, "panic: test timed out after 30m0s"},
		"a test goes on": {`
=== RUN   TestA
    world_linux_test.go:95: in doubt: TestA: the guest was late
--- FAIL: TestA (0.00s)
=== RUN   TestB
signal: killed
FAIL	pkg	1800.0s
`, "TestB has not ended"},
		"a test began twice": {"=== RUN   TestA\n--- PASS: TestA (0.00s)\n=== RUN   TestA\n", "TestA began twice"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := verdict(t, c.log)
			if err == nil || err.Error() != c.want || got != "" {
				t.Errorf("%q, %v, want the error %q", got, err, c.want)
			}
		})
	}
	if _, err := verdict(t, "", "another"); err == nil {
		t.Error("two logs were taken")
	}
	if err := run([]string{filepath.Join(t.TempDir(), "none")}, nil); err == nil {
		t.Error("a log that is not there was read")
	}
}

// The log is that of a run, shortened: a guest in a machine whose own tests print their
// results too.
func TestALogOfARunInDoubt(t *testing.T) {
	log, err := os.ReadFile("testdata/doubt.log")
	if err != nil {
		t.Fatal(err)
	}
	const name = "TestTheAdapterIsExactInsideAMachine/TestLinuxGoesThrough30Generations"
	got, err := verdict(t, string(log))
	if want := name + " doubtful\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	got, err = verdict(t, string(log), "-why", name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"state_linux_test.go:60: linux_test.go:54: generation 30: the guest was late",
		"last on the console of machine adapter: ",
		"console: machine: tests ended with 1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "=== "+name+": ") || len(line) > 2000 {
			t.Errorf("a line of %d bytes: %.80q", len(line), line)
		}
	}
}

func TestTheLastThingsAreShownAndNotAll(t *testing.T) {
	var log strings.Builder
	log.WriteString("=== RUN   TestA\n")
	for range 50 {
		log.WriteString("    a_test.go:1: one thing\n        BUG: at a place\n        triple fault: of vCPU 1\n")
	}
	log.WriteString("    a_test.go:2: the last thing\n--- FAIL: TestA (0.00s)\nFAIL\n")
	got, err := verdict(t, log.String(), "-why", "TestA")
	if err != nil {
		t.Fatal(err)
	}
	counts := []int{strings.Count(got, "a_test.go"), strings.Count(got, "BUG:"), strings.Count(got, "triple fault: "), strings.Count(got, "the last thing")}
	if diff := cmp.Diff([]int{mostRecords, mostOdd, mostTold, 1}, counts); diff != "" {
		t.Error(diff)
	}
}
