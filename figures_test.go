package lockstep_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// What the documents count is counted here.

func TestTheREADMESaysHowManyFaultsOfDisksCanBePlanted(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "replication/mutants_test.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(node ast.Node) bool {
		if v, ok := node.(*ast.ValueSpec); ok && v.Names[0].Name == "mutants" {
			n = len(v.Values[0].(*ast.CompositeLit).Elts)
		}
		return true
	})
	if want := fmt.Sprintf("%d faults can be planted", n); n == 0 || !strings.Contains(read(t, "README.md"), want) {
		t.Errorf("the README does not say that %s", want)
	}
	if !strings.Contains(read(t, "replication/mutation_test.go"), `flag.Int("mutants", 4,`) {
		t.Error("without -mutants it is not the first four, as the README says, that are planted")
	}
}

// A row of the figures has a command of its own, or that of the row above it ("the same"), with other
// arguments perhaps.
func TestEachFigureHasItsCommand(t *testing.T) {
	rows, own := 0, false
	for line := range strings.Lines(read(t, "docs/benchmarks.md")) {
		if !strings.HasPrefix(line, "|") {
			own = false // the first row of a table has no row above it
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimSpace(line), " |"), " | ")
		command := cells[len(cells)-1]
		if command == "command" || strings.HasPrefix(command, "--- ") || command == "---" {
			continue
		}
		rows++
		switch runs := strings.Contains(command, "`go test ") || strings.Contains(command, "`go run ") || strings.Contains(command, " && go test "); {
		case runs:
			own = true
		case !strings.HasPrefix(command, "the same") || !own:
			t.Errorf("the figure of %q has no command, but %q", cells[0], command)
		}
	}
	if rows < 50 {
		t.Errorf("the page has %d figures", rows)
	}
}

func TestTheModelRunsAsManySeedsAsTheREADMESays(t *testing.T) {
	if !strings.Contains(read(t, "README.md"), "20,000 seeds") || !strings.Contains(read(t, ".ci/run"), "${MODEL_SEEDS:-20000}") {
		t.Error("the README says 20,000 seeds, and .ci/run runs others")
	}
}

func TestTheShortestProgramIsAsShortAsTheREADMESays(t *testing.T) {
	for file, said := range map[string]int{"examples/protected/machine.go": 80, "examples/protected/main.go": 120} {
		n := 0
		for line := range strings.Lines(read(t, file)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				n++
			}
		}
		if n < said-10 || n > said+10 {
			t.Errorf("%s has %d lines of code, and the README says some %d", file, n, said)
		}
	}
	for _, says := range []string{"some 80 lines and some 120 lines more", "some 80 lines, and some 120 that protect it"} {
		if !strings.Contains(strings.Join(strings.Fields(read(t, "README.md")), " "), says) {
			t.Errorf("the README does not say %q", says)
		}
	}
}

func TestAHostSeeksTheOtherAsOftenAsOperatorsAreTold(t *testing.T) {
	first, err1 := constant(t, "colo/protect", "minRedial")
	then, err2 := constant(t, "colo/protect", "maxRedial")
	page := strings.Join(strings.Fields(read(t, "docs/operations.md")), " ")
	if err1 != nil || err2 != nil || first != 20*time.Millisecond || then != time.Second || !strings.Contains(page, "after 20 ms at first, then after twice as long each time, up to a second") {
		t.Errorf("it seeks after %v (%v) at first and then after up to %v (%v), and the page says otherwise", first, err1, then, err2)
	}
}

func TestTheMarginOfAGrantIsThatOfThePage(t *testing.T) {
	page := strings.Join(strings.Fields(read(t, "docs/operations.md")), " ")
	if !strings.Contains(page, "a margin of two per cent of the term and a millisecond") {
		t.Error("docs/operations.md does not say what the margin is")
	}
	for _, term := range []time.Duration{failover.MinTerm, time.Second, time.Hour} {
		if got, want := failover.Margin(term), term*2/100+time.Millisecond; got != want {
			t.Errorf("of a term of %v the margin is %v, want %v", term, got, want)
		}
	}
}

func TestTheTermsOfTheMainExampleAreThoseOfTheREADME(t *testing.T) {
	one, err1 := constant(t, "examples/lockstep", "defaultTerm")
	series, err2 := constant(t, "examples/lockstep", "seriesTerm")
	page := strings.Join(strings.Fields(read(t, "README.md")), " ")
	if err1 != nil || err2 != nil || one != 400*time.Millisecond || series != 2*time.Second || !strings.Contains(page, "keeps the guest from the other host, 400 ms (2 s with `-failovers` and `-switchover`)") {
		t.Errorf("the terms are %v (%v) and %v (%v), and the README says otherwise", one, err1, series, err2)
	}
}

// inSeconds are the times that sentences of docs/operations.md have in words, and the constants
// of which each is the sum.
var inSeconds = []struct {
	sentence string
	is       time.Duration
	dir      string
	names    []string
}{
	{"for `generation` a takeover waits two seconds at most", 2 * time.Second, "colo/protect", []string{"recordWait", "obedient"}},
	{"when it is refused for longer than a second, once for each reason", time.Second, "colo/protect", []string{"maxRedial"}},
	{"tries again each second, and follows when it has what it lacked", time.Second, "colo/protect", []string{"maxRedial"}},
	{"Told once a second at most of reads, and as often of writes.", time.Second, "replication", []string{"ioErrorsEvery"}},
	{"After five seconds a QEMU that hangs (it is stopped, or its storage is) is named", 5 * time.Second, "examples/lockstep-qemu", []string{"defaultSlow"}},
	{"`check` and `protect` end, after ten seconds where it does not greet", 10 * time.Second, "examples/lockstep-qemu", []string{"defaultSlow", "defaultSlow"}},
}

func TestTimesThatOperatorsAreToldInWordsAreThoseOfTheCode(t *testing.T) {
	page := strings.Join(strings.Fields(read(t, "docs/operations.md")), " ")
	for _, s := range inSeconds {
		var sum time.Duration
		for _, name := range s.names {
			d, err := constant(t, s.dir, name)
			if err != nil {
				t.Error(err)
			}
			sum += d
		}
		if sum != s.is || !strings.Contains(page, s.sentence) {
			t.Errorf("%v of %s are %v, and the page does not say %q, or %v", s.names, s.dir, sum, s.sentence, s.is)
		}
	}
}
