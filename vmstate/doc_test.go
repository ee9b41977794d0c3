package vmstate

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The table in the package's documentation names what is there, and something
// tests it.
func TestTheTableOfSavevmNamesWhatExists(t *testing.T) {
	declared, tested, doc := make(map[string]bool), make(map[string]bool), ""
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	wantNil(t, "list", err)
	for _, name := range files {
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		wantNil(t, name, err)
		if strings.HasSuffix(name, "_test.go") {
			ast.Inspect(file, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					tested[id.Name] = true
				}
				return true
			})
			continue
		}
		doc += file.Doc.Text()
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					typ := d.Recv.List[0].Type
					if p, ok := typ.(*ast.StarExpr); ok {
						typ = p.X
					}
					name = typ.(*ast.Ident).Name + "." + name
				}
				declared[name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok {
						declared[ts.Name.Name] = true
					}
				}
			}
		}
	}
	called, migrates := calls(t, "../colo/*.go", "../colo/standby/*.go"), calls(t, "../migrate/*.go", "ram/lazysaver.go")
	declared["Registry.SwitchoverAcked"] = true // a field
	rows := 0
	names := regexp.MustCompile(`[A-Z][A-Za-z]*(\.[A-Z][A-Za-z]*)?`)
	for _, row := range strings.Split(doc, "\n") {
		at := strings.Index(row, "qemu_")
		if !strings.HasPrefix(row, "\t") || at < 0 {
			if !strings.Contains(row, "_non_iterable ") && !strings.Contains(row, "iterable_only ") {
				continue
			}
		}
		rows++
		cells := regexp.MustCompile(`\s{2,}`).Split(strings.TrimSpace(row), 2)
		if len(cells) != 2 {
			t.Fatalf("row %q", row)
		}
		used := regexp.MustCompile(`^(session|migrate|codec) `).FindStringSubmatch(cells[1])
		if used == nil {
			t.Fatalf("%s: nothing says who uses it", cells[0])
		}
		owner := ""
		for _, name := range names.FindAllString(cells[1], -1) {
			full := name
			if o, _, ok := strings.Cut(name, "."); ok {
				owner = o
			} else if !declared[name] {
				full = owner + "." + name // of the same type as the one before
			}
			if !declared[full] {
				t.Errorf("%s: there is no %s", cells[0], full)
			}
			if _, method, ok := strings.Cut(full, "."); ok {
				full = method
			}
			if !tested[full] {
				t.Errorf("%s: nothing tests %s", cells[0], full)
			}
			if full == "PutCommand" || full == "Command" || strings.HasSuffix(cells[0], "_pending_estimate") || strings.HasSuffix(cells[0], "_pending_exact") {
				continue // both use them; they differ by what they are given
			}
			user := used[1]
			if strings.Contains(cells[1], "(migrate) "+name) {
				user = "migrate"
			}
			got := "codec"
			switch {
			case called[full]:
				got = "session"
			case migrates[full]:
				got = "migrate"
			}
			if got != user {
				t.Errorf("%s: the user of %s is %s, and the table says %s", cells[0], full, got, user)
			}
		}
	}
	if rows != 31 {
		t.Errorf("%d rows, and savevm.h has 29 functions, one of them in three parts", rows)
	}
}

// calls returns the names behind a dot in the files that match a pattern: a.Name has Name.
func calls(t *testing.T, patterns ...string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			wantNil(t, name, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					names[sel.Sel.Name] = true
				}
				return true
			})
		}
	}
	return names
}
