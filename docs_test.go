package lockstep_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages returns the documents of this repository.
func pages(t *testing.T) map[string]string {
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, f := range append(files, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md") {
		texts[f] = read(t, f)
	}
	return texts
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNoDocumentHasWhatAMergeHasLeft(t *testing.T) {
	for file, text := range pages(t) {
		for line := range strings.SplitSeq(text, "\n") {
			if strings.HasPrefix(line, "<<<<<<< ") || line == "=======" || strings.HasPrefix(line, ">>>>>>> ") {
				t.Errorf("%s has the line %q", file, line)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)\)`)

func TestLinksOfTheDocumentsLeadToFiles(t *testing.T) {
	for file, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s has a link to %s, which is not there", file, m[1])
			}
		}
	}
}

func TestTheProgramThatLeadsTheREADMEIsTheExample(t *testing.T) {
	_, program, _ := strings.Cut(read(t, "README.md"), "``` go\n")
	program, _, ok := strings.Cut(program, "\n}\n```")
	example := strings.ReplaceAll(read(t, "colo/protect/example_test.go"), "\t", "    ")
	if !ok || !strings.Contains(example, program) {
		t.Error("the first program of the README is not that of colo/protect/example_test.go")
	}
}

var (
	goTest   = regexp.MustCompile("`(?:cd (\\S+) && )?(?:[A-Z_]+=\\S+ )?go test ([^`]+)`")
	selected = regexp.MustCompile(`-(run|bench|fuzz) '?(\w+)`)
)

func TestCommandsOfTheDocumentsSelectSomething(t *testing.T) {
	function := regexp.MustCompile(`func (Test|Benchmark|Fuzz)\w*\(`)
	known := map[string][]string{} // by directory
	for file, text := range pages(t) {
		for _, m := range goTest.FindAllStringSubmatch(text, -1) {
			var tests []string
			words := strings.Fields(m[2])
			if m[1] != "" {
				words = append(words, "./"+m[1])
			}
			for _, word := range words {
				if !strings.HasPrefix(word, "./") || strings.Contains(word, "...") {
					continue
				}
				if _, ok := known[word]; !ok {
					files, _ := filepath.Glob(filepath.Join(word, "*_test.go"))
					if len(files) == 0 {
						t.Errorf("%s: %s has no tests", file, word)
					}
					for _, f := range files {
						known[word] = append(known[word], function.FindAllString(read(t, f), -1)...)
					}
				}
				tests = append(tests, known[word]...)
			}
			for _, s := range selected.FindAllStringSubmatch(m[2], -1) {
				kind := map[string]string{"run": "Test", "bench": "Benchmark", "fuzz": "Fuzz"}[s[1]]
				ok := s[2] == "FuzzName" // stands for any
				for _, f := range tests {
					ok = ok || strings.HasPrefix(f, "func "+kind) && strings.Contains(f, s[2])
				}
				if !ok {
					t.Errorf("%s: %q selects no function %s…", file, m[0], kind)
				}
			}
		}
	}
}

func TestEveryPackageIsOnTheMapAndInTheREADME(t *testing.T) {
	doc, readme := read(t, "doc.go"), read(t, "README.md")
	for _, pkg := range publicPackages(t) {
		if !strings.Contains(readme, "]("+pkg+")") {
			t.Errorf("the README has no row of %s", pkg)
		}
		if !strings.Contains(doc, pkg+"]") && !strings.Contains(doc, pkg+".") {
			t.Errorf("the comment of package lockstep does not say what %s is for", pkg)
		}
	}
}

func TestEveryPackageHasAnExample(t *testing.T) {
	for _, dir := range publicPackages(t) {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(f string) bool { return strings.Contains(read(t, f), "\nfunc Example") }) {
			t.Errorf("package %s has no example", dir)
		}
	}
}

// eventName is where a type of package event says its name.
var eventName = regexp.MustCompile(`Name\(\) string\s+\{ return "([A-Z_]+)" \}`)

func TestTheTableOfEventsHasEveryEventOfTheLibrarysOwn(t *testing.T) {
	_, table, _ := strings.Cut(read(t, "docs/operations.md"), "| event | what to do |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var rows strings.Builder
	for line := range strings.Lines(table) {
		rows.WriteString(strings.Split(line, "|")[1])
	}
	known := map[string]bool{}
	files, err := filepath.Glob("event/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		for _, m := range eventName.FindAllStringSubmatch(read(t, f), -1) {
			known[m[1]] = true
			switch filepath.Base(f) {
			case "event.go", "session.go", "disk.go", "network.go", "job.go":
				if !strings.Contains(rows.String(), "`"+m[1]+"`") {
					t.Errorf("the table has no row of %s", m[1])
				}
			}
		}
	}
	for _, m := range regexp.MustCompile("`([A-Z_]+)`").FindAllStringSubmatch(rows.String(), -1) {
		if !known[m[1]] {
			t.Errorf("the table has %s, which is no event", m[1])
		}
	}
}

func TestContributorsAreToldOfEachNestedModule(t *testing.T) {
	text := read(t, "CONTRIBUTING.md")
	found := 0
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "go.mod" || path == "go.mod" {
			return err
		}
		found++
		if dir := filepath.ToSlash(filepath.Dir(path)); !strings.Contains(text, "`"+dir+"`") {
			t.Errorf("CONTRIBUTING.md does not name the module %s", dir)
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d modules, %v", found, err)
	}
}

// apiName is a name of a package as a page has it, such as `protect.Config.Lost` or
// `event/qmp.Server.Stall`.
var apiName = regexp.MustCompile("`(?:[\\w/]+/)?(\\w+)\\.([A-Z]\\w*)(?:\\.([A-Z]\\w*))?")

func TestNamesThatTheDocumentsHaveAreExported(t *testing.T) {
	api := map[string]string{} // by the last element of the import path
	for _, dir := range append(publicPackages(t), publicModules(t)...) {
		api[path.Base(dir)] += read(t, "api/"+strings.ReplaceAll(dir, "/", "_")+".txt")
	}
	names := 0
	for page, text := range pages(t) {
		if page == "CHANGELOG.md" || page == "docs/track-record.md" {
			continue // what they name may be gone
		}
		for _, m := range apiName.FindAllStringSubmatch(text, -1) {
			exported, ok := api[m[1]]
			if !ok {
				continue // of the standard library
			}
			names++
			for _, name := range m[2:] {
				if !regexp.MustCompile(`\b` + name + `\b`).MatchString(exported) {
					t.Errorf("%s has %s`, and package %s exports no %s", page, m[0], m[1], name)
				}
			}
		}
	}
	if names < 50 {
		t.Errorf("the documents have %d names", names)
	}
}
