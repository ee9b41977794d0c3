package lockstep_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/doc"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The files in api are the exported API of each package, as on linux/amd64. A change
// of it is made on purpose: by -update, in the same commit, with a line in the
// changelog.
func TestTheExportedAPIIsTheOneOnRecord(t *testing.T) {
	written := map[string]bool{}
	for _, dir := range append(publicPackages(t), publicModules(t)...) {
		got := exported(t, dir)
		name := filepath.Join("api", strings.ReplaceAll(filepath.ToSlash(dir), "/", "_")+".txt")
		written[name] = true
		if *update {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("%s has no record: %v", dir, err)
			continue
		}
		if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); d != "" {
			t.Errorf("the API of %s is not that of %s (-record +code):\n%s", dir, name, d)
		}
	}
	files, err := filepath.Glob("api/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !written[f] {
			t.Errorf("%s is of a package that is not there", f)
		}
	}
}

// publicPackages returns the directories of the packages that others may import.
func publicPackages(t *testing.T) (dirs []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			if filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") && !slices.Contains(dirs, filepath.Dir(path)) && filepath.Dir(path) != "." {
				dirs = append(dirs, filepath.Dir(path))
			}
		case path != "." && strings.HasPrefix(d.Name(), "."), d.Name() == "internal", d.Name() == "examples", d.Name() == "testdata":
			return fs.SkipDir
		default:
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != "." {
				return fs.SkipDir // a module of its own
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(dirs)
	return dirs
}

// publicModules returns the directories of the modules of their own that others may import.
func publicModules(t *testing.T) (dirs []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path != "." && strings.HasPrefix(d.Name(), ".") || d.Name() == "internal" || d.Name() == "examples" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.Name() == "go.mod" && path != "go.mod":
			dirs = append(dirs, filepath.Dir(path))
		}
		return nil
	})
	if err != nil || len(dirs) == 0 {
		t.Fatalf("%d modules, %v", len(dirs), err)
	}
	return dirs
}

// documented returns what go doc and pkg.go.dev show of a package on linux/amd64.
func documented(t *testing.T, dir string, mode parser.Mode) (*token.FileSet, *doc.Package) {
	t.Helper()
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH = "linux", "amd64"
	pkg, err := ctx.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range pkg.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, mode)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	p, err := doc.NewFromFiles(fset, files, path.Join("github.com/gocolo/lockstep", filepath.ToSlash(dir)))
	if err != nil {
		t.Fatal(err)
	}
	return fset, p
}

// exported prints the exported declarations of a package, without comments.
func exported(t *testing.T, dir string) []byte {
	t.Helper()
	fset, p := documented(t, dir, 0)
	var b bytes.Buffer
	fmt.Fprintf(&b, "package %s\n", p.Name)
	put := func(decl ast.Decl) {
		b.WriteByte('\n')
		if err := printer.Fprint(&b, fset, decl); err != nil {
			t.Fatal(err)
		}
		b.WriteByte('\n')
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			put(v.Decl)
		}
	}
	funcs := func(list []*doc.Func) {
		for _, f := range list {
			f.Decl.Body = nil
			put(f.Decl)
		}
	}
	values(p.Consts)
	values(p.Vars)
	funcs(p.Funcs)
	for _, typ := range p.Types {
		put(typ.Decl)
		values(typ.Consts)
		values(typ.Vars)
		funcs(typ.Funcs)
		funcs(typ.Methods)
	}
	return b.Bytes()
}
