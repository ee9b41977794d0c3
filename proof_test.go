package lockstep_test

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// A testOn finds the tests that are named as proof of a sentence of the documents, and says
// what keeps one from being a proof where CI runs: on linux/amd64, by step test of .ci/run.
type testOn struct {
	t        *testing.T
	module   string
	required map[string]bool   // what LOCKSTEP_REQUIRE of .ci/run names
	needs    map[string]string // the words of package require by the names of its constants
}

// parsed has what testOn.of has read, by directory, for the next test.
var parsed = map[string]*functions{}

// functions has the functions of a directory, by name; methods of a name are listed together, since
// the parser does not know the type that a selector is of.
type functions struct {
	tests, helpers map[string][]*function
}

type function struct {
	decl    *ast.FuncDecl
	imports map[string]string // a directory of this module by the name that a file gives it
	facts   *facts            // nil: not read yet
}

// facts has what the body of a function does, closures included.
type facts struct {
	calls []call
	needs []string // the second arguments of calls of package require
	fails bool
	skips bool
}

// A call is a function or method that is named: of the package in dir, or of the function's
// own where that is empty.
type call struct{ dir, name string }

func newTestOn(t *testing.T) *testOn {
	t.Helper()
	on := &testOn{t: t, module: "github.com/gocolo/lockstep", required: map[string]bool{}, needs: map[string]string{}}
	ci := read(t, ".ci/run")
	_, names, _ := strings.Cut(ci, `LOCKSTEP_REQUIRE="${LOCKSTEP_REQUIRE:-`)
	names, _, ok := strings.Cut(names, `}"`)
	if !ok {
		t.Fatal(".ci/run does not say what LOCKSTEP_REQUIRE is by default")
	}
	for name := range strings.SplitSeq(names, ",") {
		on.required[name] = true
	}
	// Whatever testing.Short leaves out is run by this step, since -short is not given.
	_, step, _ := strings.Cut(ci, "\nunit() {\n")
	step, _, _ = strings.Cut(step, "\n}\n")
	for _, line := range []string{"\tgo test -shuffle=on ./...\n", "\tnested go test -shuffle=on ./...\n"} {
		if !strings.Contains(step, line) {
			t.Errorf("step unit of .ci/run has no line %q, which runs the tests whole", strings.TrimSpace(line))
		}
	}
	for _, f := range sources(t, "internal/require") {
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok {
				for i, name := range v.Names {
					if i < len(v.Values) {
						on.needs[name.Name] = strings.Trim(types.ExprString(v.Values[i]), `"`)
					}
				}
			}
			return true
		})
	}
	return on
}

// of parses the files of a directory that are compiled on linux/amd64 without a tag: the
// tests, and others that may be given one.
func (on *testOn) of(dir string) *functions {
	if p, ok := parsed[dir]; ok {
		return p
	}
	p := &functions{tests: map[string][]*function{}, helpers: map[string][]*function{}}
	parsed[dir] = p
	entries, err := os.ReadDir(dir)
	if err != nil {
		on.t.Error(err)
		return p
	}
	there := build.Default
	there.GOOS, there.GOARCH, there.BuildTags = "linux", "amd64", nil
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		if ok, err := there.MatchFile(dir, e.Name()); err != nil || !ok {
			continue
		}
		inTests := strings.HasSuffix(e.Name(), "_test.go")
		file := path.Join(dir, e.Name())
		if !inTests && !strings.Contains(read(on.t, file), "testing") && !strings.Contains(read(on.t, file), "internal/require") {
			continue // it cannot end a test
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			on.t.Error(err)
			continue
		}
		imports := map[string]string{}
		for _, i := range f.Imports {
			if d, ok := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), on.module+"/"); ok {
				name := path.Base(d)
				if i.Name != nil {
					name = i.Name.Name
				}
				imports[name] = d
			}
		}
		where := p.helpers
		if inTests {
			where = p.tests
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil {
				where[d.Name.Name] = append(where[d.Name.Name], &function{decl: d, imports: imports})
			}
		}
	}
	return p
}

// flaws says why the test of that name in a directory proves nothing, or not always: it is
// not compiled, takes no *testing.T, cannot fail, or may be skipped for another reason than
// a tool that CI has.
func (on *testOn) flaws(dir, name string) (list []string) {
	test := on.of(dir).tests[name]
	if len(test) == 0 {
		return []string{"there is none that is compiled on linux/amd64"}
	}
	if p := test[0].decl.Type.Params; test[0].decl.Recv != nil || !strings.HasPrefix(name, "Test") ||
		p.NumFields() != 1 || !regexp.MustCompile(`^\*testing\.[TM]$`).MatchString(types.ExprString(p.List[0].Type)) {
		list = append(list, "it is no test")
	}
	fails := false
	type place struct {
		call
		inTests bool
	}
	seen := map[place]bool{}
	var visit func(at place)
	visit = func(at place) {
		if seen[at] || at.dir == "internal/require" {
			return
		}
		seen[at] = true
		functions := on.of(at.dir).helpers[at.name]
		if at.inTests {
			functions = on.of(at.dir).tests[at.name]
		}
		for _, f := range functions {
			is := f.read()
			fails = fails || is.fails
			if is.skips {
				list = append(list, fmt.Sprintf("%s of %s may skip it", at.name, at.dir))
			}
			for _, what := range is.needs {
				if c, ok := strings.CutPrefix(what, "require."); ok {
					what = on.needs[c]
				}
				if what = strings.Trim(what, `"`); !on.required[what] {
					list = append(list, "it needs "+what+", which LOCKSTEP_REQUIRE of .ci/run does not name")
				}
			}
			for _, c := range is.calls {
				if c.dir != "" {
					visit(place{c, false})
				} else {
					visit(place{call{at.dir, c.name}, at.inTests})
				}
			}
		}
	}
	visit(place{call{dir, name}, true})
	if !fails {
		list = append(list, "nothing in it fails")
	}
	return list
}

// read returns the facts of a function.
func (f *function) read() *facts {
	if f.facts != nil {
		return f.facts
	}
	is := new(facts)
	f.facts = is
	named := map[call]bool{}
	note := func(c call) {
		if !named[c] {
			named[c] = true
			is.calls = append(is.calls, c)
		}
	}
	walk(f.decl.Body, nil, func(n ast.Node, under []*ast.IfStmt) {
		switch n := n.(type) {
		case *ast.CallExpr: // require.Program(t, require.QEMU, "qemu-img")
			fun := n.Fun
			if of, ok := fun.(*ast.IndexExpr); ok { // require.Many[int64](1, 2, 3)
				fun = of.X
			}
			s, _ := fun.(*ast.SelectorExpr)
			// That of an error has no arguments.
			is.fails = is.fails || s != nil && s.Sel.Name == "Error" && len(n.Args) > 0
			switch {
			case s == nil || !isNamed(s.X, "require") || len(n.Args) < 2:
			case s.Sel.Name == "Many" || s.Sel.Name == "Sample":
				is.needs = append(is.needs, "require.Cases")
			default:
				is.needs = append(is.needs, types.ExprString(n.Args[1]))
			}
		case *ast.SelectorExpr:
			switch n.Sel.Name {
			case "Errorf", "Fatal", "Fatalf", "Fail", "FailNow", "VerifyTestMain":
				is.fails = true
			case "Skip", "Skipf", "SkipNow":
				// A decoder named r skips bytes.
				is.skips = is.skips || !isNamed(n.X, "r") && !excused(under)
			}
			x, _ := n.X.(*ast.Ident)
			switch {
			case x != nil && x.Name == "require":
			case x != nil && f.imports[x.Name] != "":
				note(call{f.imports[x.Name], n.Sel.Name})
			default:
				note(call{"", n.Sel.Name})
			}
		case *ast.Ident:
			note(call{"", n.Name})
		}
	})
	return is
}

func isNamed(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// excused reports whether a skip stands where CI does not come: under -short, which step
// unit does not give, or on another system.
func excused(under []*ast.IfStmt) bool {
	for _, i := range under {
		for cond := range strings.SplitSeq(types.ExprString(i.Cond), " && ") {
			if cond == "testing.Short()" || cond == `runtime.GOOS != "linux"` {
				return true
			}
		}
	}
	return false
}

// walk calls f for each node below n, with the if statements whose then branch it stands in.
func walk(n ast.Node, under []*ast.IfStmt, f func(n ast.Node, under []*ast.IfStmt)) {
	ast.Inspect(n, func(n ast.Node) bool {
		if i, ok := n.(*ast.IfStmt); ok {
			if i.Init != nil {
				walk(i.Init, under, f)
			}
			walk(i.Cond, under, f)
			walk(i.Body, append(under[:len(under):len(under)], i), f)
			if i.Else != nil {
				walk(i.Else, under, f)
			}
			return false
		}
		if n != nil {
			f(n, under)
		}
		return true
	})
}

// want fails the test unless the one of that name is a proof.
func (on *testOn) want(dir, name, sentence string) {
	on.t.Helper()
	for _, flaw := range on.flaws(dir, name) {
		on.t.Errorf("%s.%s is to prove %q, but %s", dir, name, sentence, flaw)
	}
}

func TestWhatIsNoProofIsFound(t *testing.T) {
	on := newTestOn(t)
	for name, want := range map[string]string{
		"TestThatHolds":               "",
		"TestThatCannotFail":          "nothing in it fails",
		"TestThatMaySkip":             "perhaps of testdata/proof may skip it",
		"TestOfAMethod":               "perhaps of testdata/proof may skip it",
		"TestThatSkipsIfNotShort":     "TestThatSkipsIfNotShort of testdata/proof may skip it",
		"TestThatNeedsWhatCIHasNot":   "it needs a printer, which LOCKSTEP_REQUIRE of .ci/run does not name",
		"ThatIsNone":                  "it is no test",
		"TestElsewhere":               "there is none that is compiled on linux/amd64",
		"TestUnderATag":               "there is none that is compiled on linux/amd64",
		"TestThatIsNotThereAnyLonger": "there is none that is compiled on linux/amd64",
	} {
		if got := strings.Join(on.flaws("testdata/proof", name), "; "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
