//go:build mutation

package protect

import (
	"flag"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/replay"
)

var mutantSeeds = flag.String("mutant.seeds", "600", "how many seeds TestMutants gives the simulator for each fault")

// TestMutants plants faults in the source, one at a time, and wants the simulator, or the
// tests that the fault names, to find each. It takes minutes: go test -tags mutation -run
// TestMutants -timeout 30m.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.What, func(t *testing.T) {
			if slices.Contains(m.Tests, "-tags="+replay.Tag) {
				var err error
				if m.Overlay, err = replay.WriteOverlay(t.TempDir(), false); err != nil {
					t.Fatal(err)
				}
			}
			out, err := m.Test("../..", "-timeout=9m", "-run=^TestSimulatedFaults$", "-seeds="+*mutantSeeds, ".")
			if err == nil {
				t.Fatalf("nobody finds it:\n%s", out)
			}
			if what := foundBy(m, string(out)); what != "" {
				t.Log(what)
				return
			}
			t.Errorf("it does not come to a trial: %v\n%s", err, out)
		})
	}
}
