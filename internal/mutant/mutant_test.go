package mutant

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAMutantIsStaleUnlessItsTextIsThereOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m     Mutant
		stale bool
	}{
		{Mutant{File: "a.go", Old: "one", New: "none"}, false},
		{Mutant{File: "a.go", Old: "one", New: "one"}, true},
		{Mutant{File: "a.go", Old: "two", New: "three"}, true},
		{Mutant{File: "a.go", Old: "four", New: "five"}, true},
	} {
		if err := c.m.Check(dir); errors.Is(err, ErrStale) != c.stale || !c.stale && err != nil {
			t.Errorf("%q: %v", c.m.Old, err)
		}
	}
	if err := (Mutant{File: "b.go", Old: "one"}).Check(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestAMutantIsPlantedInTheBuildAndNotInTheSource(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command")
	}
	dir := t.TempDir()
	const source = "package a\n\nfunc Answer() int { return 42 }\n"
	for name, text := range map[string]string{
		"go.mod":    "module a\n\ngo 1.25\n",
		"a.go":      source,
		"a_test.go": "package a\n\nimport \"testing\"\n\nfunc TestAnswer(t *testing.T) {\n\tif Answer() != 42 {\n\t\tt.Fatal(\"found\")\n\t}\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	if out, err := (Mutant{File: "a.go", Old: "42", New: "21 + 21"}).Test("."); err != nil {
		t.Errorf("a mutant that is no fault: %v\n%s", err, out)
	}
	if out, err := (Mutant{File: "a.go", Old: "42", New: "43", Tests: []string{"-run=None"}}).Test("."); err != nil {
		t.Errorf("its own arguments are not used: %v\n%s", err, out)
	}
	if out, err := (Mutant{File: "a.go", Old: "42", New: "43"}).Test(".", "-run=Answer"); err == nil {
		t.Errorf("a fault is not found:\n%s", out)
	}
	other := filepath.Join(t.TempDir(), "other.go")
	overlay := filepath.Join(filepath.Dir(other), "overlay.json")
	table := fmt.Sprintf(`{"Replace": {%q: %q}}`, filepath.Join(dir, "b.go"), other)
	if err := errors.Join(os.WriteFile(other, []byte("package a\n\nfunc init() { panic(\"replaced as well\") }\n"), 0o600), os.WriteFile(overlay, []byte(table), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := (Mutant{File: "a.go", Old: "42", New: "21 + 21", Overlay: overlay}).Test("."); err == nil || !strings.Contains(string(out), "replaced as well") {
		t.Errorf("what another overlay has is not replaced: %v\n%s", err, out)
	}
	if b, err := os.ReadFile("a.go"); err != nil || string(b) != source {
		t.Errorf("the source is %q (%v)", b, err)
	}
}
