package lockstep_test

import (
	"errors"
	"go/ast"
	"go/types"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// Whoever uses a package says what is printed and when the process ends.
func TestNoPackagePrintsExitsOrBeginsByItself(t *testing.T) {
	loud := regexp.MustCompile(`^(fmt\.Print(f|ln)?|os\.(Stdout|Stderr|Exit)|log\.\w+|slog\.(Default|SetDefault|(Debug|Info|Warn|Error)(Context)?|Log|LogAttrs)|print|println)$`)
	for _, dir := range publicPackages(t) {
		for _, file := range sources(t, dir) {
			// A variable named log is not package log.
			logs := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"log"` })
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Name.Name == "init" && n.Recv == nil {
						t.Errorf("%s has a func init", dir)
					}
				case *ast.SelectorExpr:
					if s := types.ExprString(n); loud.MatchString(s) && (logs || !strings.HasPrefix(s, "log.")) {
						t.Errorf("%s uses %s", dir, s)
					}
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && loud.MatchString(id.Name) {
						t.Errorf("%s calls %s", dir, id.Name)
					}
				}
				return true
			})
		}
	}
}

func TestKVMAndCOLODoNotKnowEachOther(t *testing.T) {
	next := map[string][]string{}
	for line := range strings.Lines(read(t, ".ci/imports")) {
		from, to, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		next[from] = append(next[from], to)
	}
	for _, pair := range [][2]string{{"kvm", "colo"}, {"kvm/pc", "colo"}, {"kvm/gokvmhost", "colo"}, {"colo", "kvm"}, {"colo/protect", "kvm"}} {
		seen := map[string]bool{}
		var visit func(pkg string)
		visit = func(pkg string) {
			if !seen[pkg] {
				seen[pkg] = true
				for _, n := range next[pkg] {
					visit(n)
				}
			}
		}
		visit(pair[0])
		if len(seen) == 1 {
			t.Errorf(".ci/imports has no arrow from %s", pair[0])
		}
		if seen[pair[1]] {
			t.Errorf("%s imports %s, or a package that does", pair[0], pair[1])
		}
	}
}

// placed are the packages whose sentinels do not name their package: an error with the place
// of the failure, of which there is one here, does so and wraps them.
var placed = map[string]error{
	"colo":                &colo.Error{Err: errors.New("no")},
	"colo/filter":         &filter.Error{Err: errors.New("no")},
	"qemufile":            &qemufile.Error{Err: errors.New("no")},
	"replication":         replication.ErrSize,
	"vmstate":             &vmstate.SectionError{Err: errors.New("no")},
	"vmstate/ram":         &ram.Error{Err: errors.New("no")},
	"vmstate/ram/multifd": &multifd.Error{Err: errors.New("no")},
}

// What is printed names the package once: a sentinel that names it by itself is not wrapped by
// an error that does so too.
func TestAnErrorWithAPlaceNamesItsPackageOnce(t *testing.T) {
	for dir, err := range placed {
		name := path.Base(dir) + ": "
		if text := err.Error(); !strings.HasPrefix(text, name) || strings.Count(text, name) != 1 {
			t.Errorf("%s: %q does not name its package once", dir, text)
		}
		named := map[string]bool{}
		for _, file := range sources(t, dir) {
			ast.Inspect(file, func(n ast.Node) bool {
				if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
					if call, ok := v.Values[0].(*ast.CallExpr); ok && len(call.Args) > 0 {
						named[v.Names[0].Name] = strings.HasPrefix(types.ExprString(call.Args[0]), `"`+name)
					}
				}
				return true
			})
		}
		for _, file := range sources(t, dir) {
			ast.Inspect(file, func(n ast.Node) bool {
				if kv, ok := n.(*ast.KeyValueExpr); ok && types.ExprString(kv.Key) == "Err" && named[types.ExprString(kv.Value)] {
					t.Errorf("%s: an error wraps %s, which names the package by itself", dir, types.ExprString(kv.Value))
				}
				return true
			})
		}
	}
}

// An error that crosses packages says where it comes from.
func TestErrorsBeginWithTheirPackage(t *testing.T) {
	sentinels := 0
	for _, dir := range publicPackages(t) {
		if placed[dir] != nil {
			continue
		}
		for _, file := range sources(t, dir) {
			for _, d := range file.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok {
					continue
				}
				for _, s := range g.Specs {
					v, ok := s.(*ast.ValueSpec)
					if !ok || len(v.Values) != 1 {
						continue
					}
					call, ok := v.Values[0].(*ast.CallExpr)
					if !ok || types.ExprString(call.Fun) != "errors.New" && types.ExprString(call.Fun) != "fmt.Errorf" {
						continue
					}
					sentinels++
					if text := types.ExprString(call.Args[0]); v.Names[0].IsExported() && !strings.HasPrefix(text, `"`+path.Base(dir)+": ") {
						t.Errorf("%s.%s is %s, without the package", dir, v.Names[0], text)
					}
				}
			}
		}
	}
	if sentinels == 0 {
		t.Error("no package has an error")
	}
}

func TestQuickackStandsAlone(t *testing.T) {
	for line := range strings.Lines(read(t, ".ci/imports")) {
		from, to, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		if from == "colo/quickack" || to == "colo/quickack" && from != "examples/lockstep-qemu" {
			t.Errorf("there is an arrow from %s to %s", from, to)
		}
	}
}

// The machines that docs/architecture.md calls decisions, and what the comments of packages event
// and standby say to be like them, by the files that hold them.
func TestDecisionsDoNoIO(t *testing.T) {
	outside := regexp.MustCompile(`^"(os|net|io|syscall|context)(/.*)?"$|/unix"$`)
	clock := regexp.MustCompile(`^time\.(Now|Since|Until|After|AfterFunc|Sleep|Tick|NewTimer|NewTicker)$`)
	machines := map[string]string{
		"failover/machine.go": "Machine", "failover/holder.go": "Holder", "failover/record.go": "Record",
		"failover/heartbeat/monitor.go": "Monitor", "colo/compare/": "Engine", "colo/protect/machine.go": "machine",
		"event/order.go": "Order", "event/limiter.go": "Limiter",
		"colo/standby/guard.go": "Guard", "colo/standby/takeover.go": "Takeover",
	}
	for where, name := range machines {
		dir, file := filepath.Split(where)
		methods := 0
		for base, f := range byFile(t, dir) {
			if file != "" && base != file {
				continue
			}
			has := 0
			for _, d := range f.Decls {
				d, ok := d.(*ast.FuncDecl)
				if !ok || d.Recv == nil || strings.TrimPrefix(types.ExprString(d.Recv.List[0].Type), "*") != name {
					continue
				}
				has++
				ast.Inspect(d, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.GoStmt:
						t.Errorf("%s.%s of %s starts a goroutine", name, d.Name.Name, base)
					case *ast.SelectorExpr:
						if s := types.ExprString(n); clock.MatchString(s) {
							t.Errorf("%s.%s of %s calls %s", name, d.Name.Name, base, s)
						}
					}
					return true
				})
			}
			for _, i := range f.Imports {
				if has > 0 && outside.MatchString(i.Path.Value) {
					t.Errorf("%s%s, which has methods of %s, imports %s", dir, base, name, i.Path.Value)
				}
			}
			methods += has
		}
		if methods == 0 {
			t.Errorf("%s has no methods of %s", where, name)
		}
	}
}

func TestTheRootModuleDependsOnWhatTheREADMESays(t *testing.T) {
	linked := []string{"github.com/bobuhiro11/gokvm", "golang.org/x/sys"}
	known := append([]string{"github.com/google/go-cmp", "go.uber.org/goleak"}, linked...)
	for line := range strings.Lines(read(t, "go.mod")) {
		if f := strings.Fields(line); len(f) == 2 && strings.HasPrefix(f[1], "v") && !slices.Contains(known, f[0]) {
			t.Errorf("go.mod requires %s", f[0])
		}
	}
	for _, dir := range publicPackages(t) {
		for _, file := range sources(t, dir) {
			for _, i := range file.Imports {
				p := strings.Trim(i.Path.Value, `"`)
				foreign := strings.Contains(strings.Split(p, "/")[0], ".") && !strings.HasPrefix(p, "github.com/gocolo/lockstep")
				if foreign && !slices.ContainsFunc(linked, func(l string) bool { return p == l || strings.HasPrefix(p, l+"/") }) {
					t.Errorf("%s imports %s", dir, p)
				}
			}
		}
	}
}

// Who protects a guest of another VMM does not link gokvm.
func TestGokvmIsLinkedByThePackagesThatTheREADMESays(t *testing.T) {
	next, direct := map[string][]string{}, map[string]bool{}
	for line := range strings.Lines(read(t, ".ci/imports")) {
		from, to, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		next[from] = append(next[from], to)
	}
	var links func(pkg string) bool
	links = func(pkg string) bool {
		if _, ok := direct[pkg]; !ok {
			direct[pkg] = slices.ContainsFunc(sources(t, pkg), func(f *ast.File) bool {
				return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
					return strings.HasPrefix(i.Path.Value, `"github.com/bobuhiro11/gokvm`)
				})
			})
		}
		return direct[pkg] || slices.ContainsFunc(next[pkg], links)
	}
	var who []string
	for _, dir := range publicPackages(t) {
		if links(dir) {
			who = append(who, dir)
		}
	}
	slices.Sort(who)
	if want := []string{"colo/colotest", "kvm", "kvm/gokvmhost", "kvm/pc"}; !slices.Equal(who, want) {
		t.Errorf("gokvm is linked by %q, and the README says by %q", who, want)
	}
	if says := strings.Join(strings.Fields(read(t, "README.md")), " "); !strings.Contains(says, "(`kvm`, `kvm/pc` and `colo/colotest` link the types of its `kvm` package, `kvm/gokvmhost` its machine") {
		t.Error("the README says otherwise")
	}
}

// A package that bounds what it takes is one that decodes what others send.
func TestEveryPackageThatBoundsAnInputHasAFuzzTarget(t *testing.T) {
	for _, list := range bounds {
		for _, b := range list {
			files, err := filepath.Glob(b.dir + "/*_test.go")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(files, func(f string) bool { return strings.Contains(read(t, f), "\nfunc Fuzz") }) {
				t.Errorf("%s, which bounds %s, has no fuzz target", b.dir, b.name)
			}
		}
	}
}

// A script that reads what an example prints is not to take a part of it for all.
func TestExamplesNoticeThatTheirOutputIsNotWritten(t *testing.T) {
	mains, err := filepath.Glob("examples/*/main.go")
	if err != nil || len(mains) < 6 {
		t.Fatalf("%d programs, %v", len(mains), err)
	}
	for _, name := range mains {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(name), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(text), "\n") {
				rest := line
				for _, allowed := range []string{"cli.NewOutput(os.Stdout)", "cli.IsTerminal(os.Stdout)", "sideMain(os.Stdin, os.Stdout)",
					// both make the Output of it, and are tested
					"output(os.Args[1:], os.Stdout, os.Stderr)", "streams(os.Stdin, os.Stdout, os.Stderr)"} {
					rest = strings.ReplaceAll(rest, allowed, "")
				}
				if strings.Contains(rest, "os.Stdout") {
					t.Errorf("%s:%d: standard output beside cli.NewOutput: %s", file, i+1, strings.TrimSpace(line))
				}
			}
			if file == name && !strings.Contains(string(text), "os.Exit(out.Status(") {
				t.Errorf("%s: the exit status does not say that output was not written", file)
			}
		}
	}
}

// A program that runs a guest, or keeps one for another host, does not die with whoever reads what it prints.
func TestProgramsWithAGuestOutliveTheirReaders(t *testing.T) {
	mains, err := filepath.Glob("examples/*/main.go")
	if err != nil || len(mains) < 6 {
		t.Fatalf("%d programs, %v", len(mains), err)
	}
	for _, name := range mains {
		switch filepath.Base(filepath.Dir(name)) {
		case "netcompare", "streamdump": // they do nothing but print
			continue
		}
		if !strings.Contains(read(t, name), "cli.OutliveReader()") {
			t.Errorf("%s: SIGPIPE ends the program, and the guest with it", name)
		}
	}
}

// Whoever knows what one program says of a wrong command line knows it of all.
func TestProgramsReadTheirCommandLinesInOneWay(t *testing.T) {
	mains, err := filepath.Glob("examples/*/main.go")
	if err != nil || len(mains) < 6 {
		t.Fatalf("%d programs, %v", len(mains), err)
	}
	for _, name := range append(mains, "failover/etcd/lockstep-etcd/main.go") {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(name), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				text.WriteString(read(t, file))
			}
		}
		for _, call := range []string{"cli.Parse(", "cli.Tell("} {
			if !strings.Contains(text.String(), call) {
				t.Errorf("%s has no call of %s…)", filepath.Dir(name), call)
			}
		}
		if strings.Contains(text.String(), "-h explains") {
			t.Errorf("%s says in a way of its own that -h explains", filepath.Dir(name))
		}
	}
}

// Whoever tries the library for the first time runs go test -short: what it says of itself,
// that it starts no process and opens no /dev/kvm, is shown where CI runs, by the program
// that internal/confine tests.
func TestShortTestsAreRunConfinedByCI(t *testing.T) {
	ci := read(t, ".ci/run")
	body := func(name string) string {
		_, rest, _ := strings.Cut(ci, "\n"+name+"() {\n")
		b, _, ok := strings.Cut(rest, "\n}\n")
		if !ok {
			t.Fatalf(".ci/run has no function %s", name)
		}
		return b + "\n"
	}
	if !strings.Contains(body("unit"), "\tshort\n") {
		t.Error("step unit of .ci/run does not run function short")
	}
	for _, line := range []string{"\tgo build -o \"$dir\" ./internal/confine\n", "LOCKSTEP_REQUIRE= go test -short -count=1 -exec \"$dir/confine\" ./..."} {
		if !strings.Contains(body("short"), line) {
			t.Errorf("function short of .ci/run has no line %q", strings.TrimSpace(line))
		}
	}
	newTestOn(t).want("internal/confine", "TestAProgramThatUsesWhatIsOutsideFails", "with -short no process is started")
}

// Who installs the examples still finds the programs that they work with.
func TestExamplesDoNotShadowOtherPrograms(t *testing.T) {
	for _, taken := range []string{"qemu", "gokvm", "etcd", "nbdkit"} {
		if _, err := os.Stat(filepath.Join("examples", taken)); err == nil {
			t.Errorf("go install of examples/%s replaces another program of that name", taken)
		}
	}
}
