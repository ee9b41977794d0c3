package lockstep_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// defaults says where the default of each time in docs/operations.md stands: in a
// directory, as a constant of the package there or a name that it is assigned to.
var defaults = map[string]struct{ dir, constant string }{
	"protect.Config.CheckpointDelay":        {"colo/protect", "DefaultCheckpointDelay"},
	"protect.Config.Beat":                   {"colo/protect", "DefaultBeat"},
	"protect.Config.Lost":                   {"colo/protect", "DefaultLost"},
	"protect.Config.Term":                   {"failover", "DefaultTerm"},
	"protect.Config.PeerTimeout":            {"colo", "DefaultPeerTimeout"},
	"colo.PrimaryConfig.CheckpointDelay":    {"colo", "DefaultCheckpointDelay"},
	"colo.PrimaryConfig.MinInterval":        {"colo", "DefaultMinInterval"},
	"colo.PrimaryConfig.CheckpointTimeout":  {"colo", "DefaultCheckpointTimeout"},
	"protect.Config.CheckpointTimeout":      {"colo", "DefaultCheckpointTimeout"},
	"colo.PrimaryConfig.MaxDowntime":        {"colo", "DefaultMaxDowntime"},
	"colo.PrimaryConfig.PeerTimeout":        {"colo", "DefaultPeerTimeout"},
	"colo.SecondaryConfig.PeerTimeout":      {"colo", "DefaultPeerTimeout"},
	"colo.SecondaryConfig.IdleTimeout":      {"colo", "DefaultIdleTimeout"},
	"failover.KeeperConfig.Term":            {"failover", "DefaultTerm"},
	"failover.MinTerm":                      {"failover", "MinTerm"},
	"replication.ForwarderConfig.Timeout":   {"replication", "defaultTimeout"},
	"replication.PrimaryConfig.HungAfter":   {"replication", "DefaultHungAfter"},
	"replication.SecondaryConfig.HungAfter": {"replication", "DefaultHungAfter"},
	"protect.DiskConfig.HungAfter":          {"replication", "DefaultHungAfter"},
	"event/qmp.Server.Stall":                {"event/qmp", "DefaultStall"},
}

// A row of the table of times: its name, what it bounds, its default.
var timeRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\| ([^|]+) \\|$")

func TestTheTableOfTimesHasTheDefaultsOfTheCode(t *testing.T) {
	page, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Times\n")
	section, _, _ = strings.Cut(section, "\n## ")
	seen := map[string]bool{}
	for _, m := range timeRow.FindAllStringSubmatch(section, -1) {
		name, written := m[1], strings.TrimSpace(m[2])
		seen[name] = true
		at, known := defaults[name]
		if !known {
			if written != "-" {
				t.Errorf("%s is said to be %s, and nothing says which constant that is", name, written)
			}
			continue
		}
		want, err := constant(t, at.dir, at.constant)
		if err != nil {
			t.Fatal(err)
		}
		got, err := time.ParseDuration(strings.NewReplacer(" ", "", "min", "m").Replace(written))
		if err != nil || got != want {
			t.Errorf("%s is %v in %s, and %q in the table", name, want, at.dir, written)
		}
	}
	for name := range defaults {
		if !seen[name] {
			t.Errorf("the table has no row for %s", name)
		}
	}
}

// constant returns the duration of a constant in the Go files of a directory.
func constant(t *testing.T, dir, name string) (time.Duration, error) {
	t.Helper()
	for _, f := range byFile(t, dir) {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, n := range v.Names {
					if n.Name == name && i < len(v.Values) {
						return duration(v.Values[i])
					}
				}
			}
		}
	}
	return 0, fmt.Errorf("%s has no constant %s", dir, name)
}

// duration evaluates "time.Second" and "30 * time.Second".
func duration(e ast.Expr) (time.Duration, error) {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		unit, ok := map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute}[e.Sel.Name]
		if ok {
			return unit, nil
		}
	case *ast.BasicLit:
		n, err := strconv.Atoi(e.Value)
		return time.Duration(n), err
	case *ast.BinaryExpr:
		x, err := duration(e.X)
		if err != nil || e.Op != token.MUL {
			break
		}
		y, err := duration(e.Y)
		return x * y, err
	}
	return 0, fmt.Errorf("no duration: %T", e)
}
