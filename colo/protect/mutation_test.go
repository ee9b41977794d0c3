//go:build mutation

package protect

import (
	"flag"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var mutantSeeds = flag.String("mutant.seeds", "600", "how many seeds TestMutants gives the simulator for each fault")

// What a run says when it finds something: the simulator, and other tests. A bubble in
// which nothing can go on ends in a panic.
var (
	seedFound = regexp.MustCompile(`seed \d+(: deadlock: .*)?$`)
	testFound = regexp.MustCompile(`--- FAIL: .*$`)
)

// TestMutants plants faults in the source, one at a time, and wants the simulator, or the
// tests that the fault names, to find each. It takes minutes: go test -tags mutation -run
// TestMutants -timeout 30m.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.What, func(t *testing.T) {
			out, err := m.Test("../..", "-timeout=9m", "-run=^TestSimulatedFaults$", "-seeds="+*mutantSeeds, ".")
			if err == nil {
				t.Fatalf("nobody finds it:\n%s", out)
			}
			found := seedFound
			if len(m.Tests) > 0 && !slices.Contains(m.Tests, "-run=^TestSimulatedFaults$") {
				found = testFound
			}
			for line := range strings.Lines(string(out)) {
				if what := found.FindString(strings.TrimSpace(line)); what != "" {
					t.Log(what)
					return
				}
			}
			t.Errorf("it does not come to a trial: %v\n%s", err, out)
		})
	}
}
