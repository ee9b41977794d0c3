package protect

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/mutant"
)

// What a run says when it finds something: the simulator, which names a seed, and other tests. A
// bubble in which nothing can go on ends in a panic.
var (
	seedFound = regexp.MustCompile(`^(simulate_seeds_test\.go:\d+: seed \d+|panic: seed \d+: deadlock: .*)$`)
	testFound = regexp.MustCompile(`^--- FAIL: (Test\w+) \(`)
)

// foundBy returns the line by which the output of go test says that it has found a mutant: that of a
// seed, or of a test that the mutant names. "": there is none, so that it has failed for
// something else.
func foundBy(m mutant.Mutant, out string) string {
	var named *regexp.Regexp // nil: the simulator is to find it
	if len(m.Tests) > 0 && !slices.Contains(m.Tests, "-run=^TestSimulatedFaults$") {
		named = regexp.MustCompile(`^$`)
		for _, arg := range m.Tests {
			if run, ok := strings.CutPrefix(arg, "-run="); ok {
				named = regexp.MustCompile(run)
			}
		}
	}
	for line := range strings.Lines(out) {
		if named == nil {
			if what := seedFound.FindString(strings.TrimSpace(line)); what != "" {
				return what
			}
		} else if test := testFound.FindStringSubmatch(line); test != nil && named.MatchString(test[1]) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// seedOf returns the seed that such a line names, "" if it names none.
func seedOf(found string) string {
	if m := regexp.MustCompile(`seed (\d+)`).FindStringSubmatch(found); m != nil {
		return m[1]
	}
	return ""
}

// reason returns what the output of a run says first that is wrong.
func reason(out string) string {
	return strings.TrimSpace(regexp.MustCompile(`(?m)^(    \w+_test\.go:\d+: .*|panic: .*)$`).FindString(out))
}

// controls are, for each thing that must hold in a simulation, mutants that break it and that the
// simulator finds.
var controls = map[string][]string{
	"one host at a time acts for the guest": {
		"a grant lasts longer than its term", "a secondary does not keep its promise", "a packet leaves through a shut gate",
	},
	"nothing leaves that the survivor does not know of": {"output leaves before its checkpoint is there", "a checkpoint forgets the output that it lets go"},
	"a guest is in a state of its history":              {"what a guest writes while its state is sent counts as sent"},
	"its disk is what its memory says":                  {"a disk is brought back over a checkpoint"},
	"the pair is in step again":                         {"an error of long ago keeps a secondary from its claim", "a primary whose disk has failed leaves its guest to a secondary that is dead"},
	"nothing is held for ever":                          {"a host that leaves lets its guest wait for its disk"},
}

func TestWhatMustHoldInASimulationIsBrokenByAMutantThatItFinds(t *testing.T) {
	for holds, all := range controls {
		for _, what := range all {
			if !slices.ContainsFunc(mutants, func(m mutant.Mutant) bool { return m.What == what && len(m.Tests) == 0 }) {
				t.Errorf("%s: there is no mutant for the simulator that is called %q", holds, what)
			}
		}
	}
}

// A mutant counts as found by what it was planted for, and not by any failure.
func TestAMutantIsFoundByASeedOrByTheTestThatItNames(t *testing.T) {
	simulated, named := mutant.Mutant{}, mutant.Mutant{Tests: []string{"-run=^TestThis$", "."}}
	for _, c := range []struct {
		m     mutant.Mutant
		out   string
		found bool
	}{
		{simulated, "    simulate_seeds_test.go:146: seed 17\n", true},
		{simulated, "    world_test.go:143: two act\n    simulate_seeds_test.go:146: seed 17\n", true},
		{simulated, "panic: seed 17: deadlock: main bubble goroutine has exited [recovered]\n", true},
		{simulated, "    simulate_seeds_test.go:137: seed 17: 00ff of 12 events\n", false},
		{simulated, "flag provided but not defined: -seed 17\n", false},
		{simulated, "    other_test.go:1: it is not seed 17\n", false},
		{simulated, "panic: seed 17: runtime error: invalid memory address\n", false},
		{simulated, "--- FAIL: TestSimulatedFaults (1.00s)\n    simulate_seeds_test.go:200: nothing was compared\n", false},
		{named, "--- FAIL: TestThis (0.00s)\n", true},
		{named, "--- FAIL: TestThat (0.00s)\n", false},
		{named, "    --- FAIL: TestThis/part (0.00s)\n", false},
		{named, "    x_test.go:3: it said --- FAIL: TestThis (0.00s)\n", false},
		{named, "panic: test timed out after 9m0s\n\trunning tests:\n\t\tTestThis (9m0s)\n", false},
		{named, "FAIL\tpackage [build failed]\n", false},
	} {
		line := foundBy(c.m, c.out)
		first, _, _ := strings.Cut(c.out, "\n")
		if why := reason(c.out); c.found && len(c.m.Tests) == 0 && why != strings.TrimSpace(first) {
			t.Errorf("%q: the reason %q", c.out, why)
		}
		if found := line != ""; found != c.found {
			t.Errorf("%q: found %v", c.out, found)
		}
		if seed := seedOf(line); line != "" && seed != map[bool]string{true: "17"}[len(c.m.Tests) == 0] {
			t.Errorf("%q: seed %q", line, seed)
		}
	}
}
