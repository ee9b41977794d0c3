package require

import (
	"flag"
	"testing"
)

// A case that a sample leaves out is run where all are asked for, and not with -short.
func TestOfManyCasesASampleIsRunUnlessAllAreWanted(t *testing.T) {
	short := flag.Lookup("test.short").Value
	was := short.String()
	defer short.Set(was)
	for _, c := range []struct {
		short, require string
		sampled        bool
	}{
		{"false", "", true}, {"false", "kvm,qemu", true}, {"true", "", true}, {"true", "kvm,cases", true}, {"false", "kvm,cases", false},
	} {
		t.Setenv("LOCKSTEP_REQUIRE", c.require)
		short.Set(c.short)
		if got, want := Many(1, 2, 3), map[[2]bool]int{{true, true}: 1, {false, true}: 2, {false, false}: 3}[[2]bool{c.short == "true", c.sampled}]; got != want {
			t.Errorf("-short=%s, LOCKSTEP_REQUIRE=%s: %d, want %d", c.short, c.require, got, want)
		}
		run := map[int]bool{}
		for i := range 5 {
			t.Run("", func(t *testing.T) {
				Sample(t, i, 4)
				run[i] = true
			})
		}
		if len(run) != map[bool]int{true: 2, false: 5}[c.sampled] || !run[0] || !run[4] {
			t.Errorf("-short=%s, LOCKSTEP_REQUIRE=%s: of 5 cases %v are run", c.short, c.require, run)
		}
	}
}
