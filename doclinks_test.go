package lockstep_test

import (
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"go/parser"
	"regexp"
	"strings"
	"testing"
)

// bracketed is a name in brackets that was to be a link: go doc leaves those that lead
// nowhere as they are.
var bracketed = regexp.MustCompile(`\[\*?(?:[A-Za-z]\w*\.)*[A-Z]\w*\]`)

// commented returns what go doc shows of a package, with its comments. Nobody changes it: it is read once
// for all tests.
func commented(t *testing.T, dir string) *doc.Package {
	t.Helper()
	p := shown[dir]
	if p == nil {
		_, p = documented(t, dir, parser.ParseComments)
		shown[dir] = p
	}
	return p
}

// shown has what commented has read, by directory.
var shown = map[string]*doc.Package{}

func TestLinksOfTheCommentsLeadToWhatIsExported(t *testing.T) {
	packages := map[string]*doc.Package{} // by import path
	for _, dir := range append(publicPackages(t), append(publicModules(t), ".")...) {
		p := commented(t, dir)
		packages[p.ImportPath] = p
	}
	links := 0
	for at, p := range packages {
		for symbol, text := range comments(p) {
			for _, x := range spans(p.Parser().Parse(text).Content) {
				switch x := x.(type) {
				case comment.Plain:
					if m := bracketed.FindString(string(x)); m != "" {
						t.Errorf("%s %s: %s leads nowhere", at, symbol, m)
					}
				case *comment.DocLink:
					links++
					if to := packages[x.ImportPath]; to != nil && x.Name != "" && !has(to, x.Recv, x.Name) {
						t.Errorf("%s %s: %s has no %s", at, symbol, x.ImportPath, x.DefaultURL(""))
					}
				}
			}
		}
	}
	if links == 0 {
		t.Error("no link was found")
	}
}

// has reports whether a package exports a name, or a method, of which recv is the type.
func has(p *doc.Package, recv, name string) bool {
	link := "[" + name + "]"
	if recv != "" {
		link = "[" + recv + "." + name + "]"
	}
	for _, x := range spans(p.Parser().Parse(link).Content) {
		if _, ok := x.(*comment.DocLink); ok {
			return true
		}
	}
	return false
}

// comments returns the comments of a package by what they are of.
func comments(p *doc.Package) map[string]string {
	all := map[string]string{"package": p.Doc}
	values := func(list []*doc.Value) {
		for _, v := range list {
			all[v.Names[0]] = v.Doc
			for _, s := range v.Decl.Specs {
				if s, ok := s.(*ast.ValueSpec); ok && (s.Doc != nil || s.Comment != nil) {
					all[s.Names[0].Name] = s.Doc.Text() + s.Comment.Text()
				}
			}
		}
	}
	funcs := func(of string, list []*doc.Func) {
		for _, f := range list {
			all[of+f.Name] = f.Doc
		}
	}
	values(p.Consts)
	values(p.Vars)
	funcs("", p.Funcs)
	for _, typ := range p.Types {
		all[typ.Name] = typ.Doc
		values(typ.Consts)
		values(typ.Vars)
		funcs("", typ.Funcs)
		funcs(typ.Name+".", typ.Methods)
	}
	return all
}

// spans returns the texts of a comment, without what is shown as code.
func spans(blocks []comment.Block) (all []comment.Text) {
	for _, b := range blocks {
		switch b := b.(type) {
		case *comment.Paragraph:
			all = append(all, b.Text...)
		case *comment.Heading:
			all = append(all, b.Text...)
		case *comment.List:
			for _, i := range b.Items {
				all = append(all, spans(i.Content)...)
			}
		}
	}
	return all
}

func TestWhatIsExportedHasAComment(t *testing.T) {
	for _, dir := range append(publicPackages(t), publicModules(t)...) {
		p := commented(t, dir)
		for symbol, text := range comments(p) {
			if text == "" && !strings.HasSuffix(symbol, ".Error") { // of which there is nothing to say
				t.Errorf("%s %s has no comment", dir, symbol)
			}
		}
	}
}
