//go:build mutation

package replication

import (
	"flag"
	"strings"
	"testing"
)

var mutantCount = flag.Int("mutants", 4, "how many of the faults are planted, the first of the list; 0: all")

// TestMutants plants faults in the source, one at a time, and wants the models,
// or the tests that a fault names, to find each. Most of the time is the compiler's. All take minutes:
// go test -tags mutation -run TestMutants -mutants 0.
func TestMutants(t *testing.T) {
	for i, m := range mutants {
		if *mutantCount > 0 && i == *mutantCount {
			break
		}
		t.Run(m.What, func(t *testing.T) {
			out, err := m.Test(".", "-timeout=4m", "-run=^TestModel", "-model.seeds=18000", ".")
			if err == nil {
				t.Fatalf("nobody finds it:\n%s", out)
			}
			for line := range strings.Lines(string(out)) {
				if seedFound.MatchString(line) || m.Tests != nil && strings.HasPrefix(line, "--- FAIL: Test") {
					t.Log(strings.TrimSpace(line))
					return
				}
			}
			t.Errorf("it does not come to a trial: %v\n%s", err, out)
		})
	}
}
