//go:build mutation

package protect

import (
	"flag"
	"os/exec"
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
				t.Log(what + "\n" + reason(string(out)))
				if seed := seedOf(what); seed != "" { // which finds nothing where the fault is not
					args := []string{"test", "-count=3", "-vet=off", "-run=^TestSimulatedFaults$", "-seed=" + seed, "-seeds=1", "."}
					if m.Overlay != "" {
						args = slices.Insert(args, 1, "-tags="+replay.Tag, "-overlay="+m.Overlay)
					}
					if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
						t.Errorf("without the fault that seed fails too: %v\n%s", err, out)
					}
				}
				return
			}
			t.Errorf("it does not come to a trial: %v\n%s", err, out)
		})
	}
}
