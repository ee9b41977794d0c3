package lockstep_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// nested returns the directories below this one that are modules of their own.
func nested(t *testing.T) (dirs []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "go.mod" && name != "go.mod" {
			dirs = append(dirs, filepath.ToSlash(filepath.Dir(name)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func TestWhatIsHeavyOrForeignIsAModuleOfItsOwn(t *testing.T) {
	page, modules := strings.Join(strings.Fields(read(t, "docs/architecture.md")), " "), nested(t)
	_, list, _ := strings.Cut(page, "**Heavy or foreign things are modules of their own**")
	list, _, _ = strings.Cut(list, ". ")
	named := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(list, -1)
	if len(named) < 5 {
		t.Errorf("docs/architecture.md names %d modules", len(named))
	}
	for _, m := range named {
		if !slices.Contains(modules, m[1]) {
			t.Errorf("%s has no go.mod", m[1])
		}
	}
	for _, module := range modules {
		if strings.Contains(read(t, "go.mod"), "lockstep/"+module) {
			t.Errorf("the root module requires %s", module)
		}
		if strings.HasPrefix(module, ".ci/") {
			continue // a tool, which uses nothing of the library
		}
		if !strings.Contains(read(t, module+"/go.mod"), "replace github.com/gocolo/lockstep => ") {
			t.Errorf("%s is not built with the library beside it", module)
		}
	}
}

func TestTheDottedArrowIsThatOfANestedModule(t *testing.T) {
	page, modules := read(t, "docs/architecture.md"), nested(t)
	dotted := regexp.MustCompile(`(?m)^ +(\w+) -\.-> `).FindAllStringSubmatch(page, -1)
	if len(dotted) == 0 {
		t.Error("no arrow is dotted")
	}
	for _, a := range dotted {
		if !slices.ContainsFunc(modules, func(m string) bool { return strings.ReplaceAll(m, "/", "_") == a[1] }) {
			t.Errorf("the arrow of %s is dotted, which is no module of its own", a[1])
		}
	}
	for _, a := range regexp.MustCompile(`(?m)^ +(\w+) --> `).FindAllStringSubmatch(page, -1) {
		if slices.ContainsFunc(modules, func(m string) bool { return strings.ReplaceAll(m, "/", "_") == a[1] }) {
			t.Errorf("the arrow of %s, a module of its own, is not dotted", a[1])
		}
	}
}
