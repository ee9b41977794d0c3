package replication

import (
	"regexp"
	"testing"
)

// seedFound is what a model says when one of its seeds finds something.
var seedFound = regexp.MustCompile(`^(\s+\w+_test\.go:\d+: |panic: )seed \d+(:| hangs| \((run it )?again)`)

func TestAFaultIsFoundByASeedAndNotByTheWord(t *testing.T) {
	for line, found := range map[string]bool{
		"    model_test.go:117: seed 12 (run it again with -run TestModel -model.seed=12): the disk differs\n": true,
		"    model_concurrent_test.go:61: seed 12 (again: -run TestModelConcurrent -model.seed=12): x\n":       true,
		"    model_unflushed_test.go:42: seed 12: torn\n":                                                      true,
		"panic: seed 12 hangs\n":                                    true,
		"panic: seed 12: {op:1}\n":                                  true,
		"  -model.seeds int\n":                                      false,
		"flag provided but not defined: -model.seeds\n":             false,
		"./model_test.go:12:2: declared and not used: seed\n":       false,
		"    model_test.go:120: 18000 seeds, in 12 power was cut\n": false,
	} {
		if seedFound.MatchString(line) != found {
			t.Errorf("%q: found %v", line, !found)
		}
	}
}
