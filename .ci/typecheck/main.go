// Typecheck checks the types of packages, and of their tests, for other systems, in what a compiler
// would take many times as long for: it makes no code.
//
//	typecheck [-tests=false] goos/goarch ... [-- package ...]
//
// The packages are ./... unless others are given. It exits with 1 if one of them, or what it imports,
// does not compile there.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

func main() {
	tests := flag.Bool("tests", true, "check the tests, too")
	flag.Parse()
	systems, patterns := flag.Args(), []string{"./..."}
	if i := slices.Index(systems, "--"); i >= 0 {
		systems, patterns = systems[:i], systems[i+1:]
	}
	if len(systems) == 0 || len(patterns) == 0 {
		fmt.Fprintln(os.Stderr, "typecheck: name a system, as goos/goarch")
		os.Exit(2)
	}
	failed := false
	for _, system := range systems {
		n, errs := check(system, patterns, *tests)
		for _, err := range errs {
			fmt.Fprintf(os.Stderr, "%s: %s\n", system, err)
		}
		failed = failed || len(errs) > 0
		fmt.Printf("%s: %d packages and tests\n", system, n)
	}
	if failed {
		os.Exit(1)
	}
}

// check returns how many packages there are for a system, their tests counted as packages, and
// what is wrong with them and with what they import.
func check(system string, patterns []string, tests bool) (n int, errs []string) {
	goos, goarch, _ := strings.Cut(system, "/")
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles | packages.NeedImports |
			packages.NeedDeps | packages.NeedTypes | packages.NeedSyntax | packages.NeedTypesSizes,
		Env:   append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0"),
		Tests: tests,
	}, patterns...)
	if err != nil {
		return 0, []string{err.Error()}
	}
	if len(pkgs) == 0 {
		return 0, []string{"no packages"}
	}
	seen := make(map[string]bool)
	packages.Visit(pkgs, nil, func(p *packages.Package) {
		for _, e := range p.Errors {
			if s := e.Error(); !seen[s] { // a package is checked again with its tests
				seen[s] = true
				errs = append(errs, s)
			}
		}
	})
	return len(pkgs), errs
}
