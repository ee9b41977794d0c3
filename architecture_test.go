package lockstep_test

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	diff "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the arrows of docs/architecture.md and the records in api anew")

// An arrow is an import: from imports to.
type arrow struct{ from, to string }

func byName(a, b arrow) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) }

func (a arrow) String() string { return a.from + " --> " + a.to }

// public reports whether users import a package.
func public(pkg string) bool {
	return !strings.HasPrefix(pkg, "examples/") && !strings.Contains("/"+pkg+"/", "/internal/")
}

func TestThePictureShowsTheImports(t *testing.T) {
	const file = "docs/architecture.md"
	imports, err := os.ReadFile(".ci/imports")
	if err != nil {
		t.Fatal(err)
	}
	var all []arrow
	for line := range strings.Lines(string(imports)) {
		from, to, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		if !ok {
			t.Fatalf(".ci/imports: no arrow in %q", line)
		}
		if public(from) && public(to) {
			all = append(all, arrow{from, to})
		}
	}
	want := direct(all)

	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		page = []byte(redraw(string(page), want))
		if err := os.WriteFile(file, page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := diff.Diff(texts(want), texts(drawn(t, string(page)))); d != "" {
		t.Errorf("the arrows of the imports (-) are not those of %s (+); go test . -update draws them:\n%s", file, d)
	}
}

// A linker that sees a template keeps every exported method of the whole program, as a
// template may call any by its name.
func TestNoPackageMakesItsUsersLinkTemplates(t *testing.T) {
	for _, dir := range publicPackages(t) {
		for _, file := range sources(t, dir) {
			for _, i := range file.Imports {
				if i.Path.Value == `"text/template"` || i.Path.Value == `"html/template"` {
					t.Errorf("%s imports %s", dir, i.Path.Value)
				}
			}
		}
	}
}

// A line that Mermaid does not know makes it draw nothing.
func TestThePictureHasNothingButNodesAndArrows(t *testing.T) {
	known := regexp.MustCompile(`^(flowchart TD|subgraph \w+ \["[^"]+"\]|end|\w+\["[^"]+"\]|\w+ (-->|-\.->) \w+)$`)
	_, picture, _ := strings.Cut(read(t, "docs/architecture.md"), "```mermaid\n")
	picture, _, ok := strings.Cut(picture, "\n```")
	if !ok {
		t.Fatal("docs/architecture.md has no picture")
	}
	for line := range strings.SplitSeq(picture, "\n") {
		if line = strings.TrimSpace(line); !known.MatchString(line) {
			t.Errorf("the picture has a line that is neither a node nor an arrow: %q", line)
		}
	}
}

func TestArrowsThatFollowFromOthersAreLeftOut(t *testing.T) {
	got := direct([]arrow{{"a", "b"}, {"a", "c"}, {"a", "d"}, {"b", "c"}, {"c", "d"}, {"e", "d"}})
	if want := []arrow{{"a", "b"}, {"b", "c"}, {"c", "d"}, {"e", "d"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// direct leaves out each arrow whose end can be reached from its beginning by
// others, and sorts the rest.
func direct(all []arrow) []arrow {
	next := map[string][]string{}
	for _, a := range all {
		next[a.from] = append(next[a.from], a.to)
	}
	var reaches func(from, to string) bool
	reaches = func(from, to string) bool {
		return slices.ContainsFunc(next[from], func(n string) bool { return n == to || reaches(n, to) })
	}
	some := slices.DeleteFunc(slices.Clone(all), func(a arrow) bool {
		return slices.ContainsFunc(next[a.from], func(n string) bool { return n != a.to && reaches(n, a.to) })
	})
	slices.SortFunc(some, byName)
	return some
}

var (
	// A node of the picture: its name there, and the package.
	node = regexp.MustCompile(`(?m)^\s*(\w+)\["([^"<]+)(?:<br/>[^"]*)?"\]$`)
	// An arrow of the picture. Dotted ones (-.->) are those of other modules.
	edge = regexp.MustCompile(`(?m)^\s*(\w+) --> (\w+)\n`)
)

// drawn returns the arrows of the picture, between packages.
func drawn(t *testing.T, page string) []arrow {
	packages := map[string]string{}
	for _, m := range node.FindAllStringSubmatch(page, -1) {
		packages[m[1]] = m[2]
	}
	var arrows []arrow
	for _, m := range edge.FindAllStringSubmatch(page, -1) {
		a := arrow{packages[m[1]], packages[m[2]]}
		if a.from == "" || a.to == "" {
			t.Errorf("the picture has no node for an end of %q", strings.TrimSpace(m[0]))
		}
		arrows = append(arrows, a)
	}
	slices.SortFunc(arrows, byName)
	return arrows
}

// redraw puts arrows in the place of those of the picture.
func redraw(page string, arrows []arrow) string {
	begin := edge.FindStringIndex(page)
	if begin == nil {
		return page
	}
	var lines strings.Builder
	name := strings.NewReplacer("/", "_")
	for _, a := range arrows {
		fmt.Fprintf(&lines, "    %s --> %s\n", name.Replace(a.from), name.Replace(a.to))
	}
	return page[:begin[0]] + lines.String() + edge.ReplaceAllString(page[begin[0]:], "")
}

func texts(arrows []arrow) (s []string) {
	for _, a := range arrows {
		s = append(s, a.String())
	}
	return s
}
