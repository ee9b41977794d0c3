package qjson

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// What a parser makes of a value does not depend on the values, and the errors, before it.
func TestAValueIsReadAsByANewParser(t *testing.T) {
	inputs := []string{
		`{"b":1,"a":[true,false,null]} `, `"x" `, "5 ", "5{} ", `{"a":1,"a":2} `, `[[[]]] `, `{"a":{"b":[{"c":"d"}]}} `, "nul ", "# 1\n", `""1 `,
		"\x00{} ", `] `, `} `, `{"a":1]} `, `"` + strings.Repeat("long", 30_000) + `" `, strings.Repeat("[", 1025) + " ", `"\ud83d\u0041" `,
		"[" + strings.Repeat("1,", 40_000) + "1] ", `"unended` + "\n",
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	p := Parser{MaxBytes: 100_000}
	for range 200 {
		in := inputs[rnd.IntN(len(inputs))]
		one := Parser{MaxBytes: 100_000}
		if got, want := read(&p, []byte(in)), read(&one, []byte(in)); !slices.Equal(got, want) {
			t.Fatalf("%.60q is %.200q, to a new parser %.200q", in, got, want)
		}
		if p.braces != one.braces || p.brackets != one.brackets || p.lex.state != one.lex.state || len(p.text) != len(one.text) || len(p.tokens) != len(one.tokens) {
			t.Fatalf("after %.60q something is left", in)
		}
		if one.lex.state != start || one.braces != 0 || one.brackets != 0 || len(one.text) > 0 { // in the midst of a value
			p = Parser{MaxBytes: 100_000}
		}
	}
}
