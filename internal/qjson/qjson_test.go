package qjson

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

// read feeds bytes and returns what comes of them, one line each.
func read(p *Parser, in []byte) (out []string) {
	for _, c := range in {
		for more := true; more; {
			var v any
			var err error
			var done bool
			if v, done, more, err = p.Feed(c); !done {
				continue
			}
			if err != nil {
				out = append(out, err.Error())
			} else {
				out = append(out, string(Append(nil, v)))
			}
		}
	}
	return out
}

func TestValuesAndErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"b":1,"a":[true,false,null]}`, `{"a": [true, false, null], "b": 1}`},
		// Two names of one bucket, as a QEMU 7.2 answers each: the later first.
		{`{"id":1,"execOOOOOute":2}{"execOOOOOute":2,"id":1}`, `{"execOOOOOute": 2, "id": 1}|{"id": 1, "execOOOOOute": 2}`},
		{`{'it':'"'}`, `{"it": "\""}`},
		{"5", ""},
		{"5 ", "5"},
		{"5{}", "5|{}"},
		{`""1 `, `""|1`},
		{"-0 -0.0 1.0 1e3 0.1 1e22 1e-5 123456789012345678 1e400 -1e400 1.5e300 ", "0|-0|1|1000|0.10000000000000001|1e+22|1.0000000000000001e-05|123456789012345678|inf|-inf|1.5000000000000001e+300"},
		{"18446744073709551615 18446744073709551616 -9223372036854775808 -9223372036854775809 ", "18446744073709551615|1.8446744073709552e+19|-9223372036854775808|-9.2233720368547758e+18"},
		{"0.0001 0.00001 12345678901234567.0 123456789012345678.0 ", "0.0001|1.0000000000000001e-05|12345678901234568|1.2345678901234568e+17"},
		{`"\u0041\/\'\u00e9\ud83d\ude00"`, `"A/'\u00E9\uD83D\uDE00"`},
		{"\"\x7f\xc0\x80\xef\xbf\xbd\"", `"\u007F\u0000\uFFFD"`},
		{"\"\xef\xb7\x90\"", "JSON parse error, invalid UTF-8 sequence in string"},
		{`"\ud83d\u0041"`, `JSON parse error, \ud83d is not a valid Unicode character`},
		{`"\u12"`, `JSON parse error, \u12" is not a valid Unicode character`},
		{`{"a":1,"a":2}`, "JSON parse error, duplicate key"},
		{`{"a":1]} `, "JSON parse error, expected separator in dict|JSON parse error, expecting value"},
		{"# 1 5 6\n5\n", "JSON parse error, stray '#'|5"},
		{"NaN\n", "JSON parse error, stray 'N'"},
		{"01\n", "JSON parse error, stray '01'"},
		{"0x1 ", "0|JSON parse error, invalid keyword 'x'|1"},
		{"nul ", "JSON parse error, invalid keyword 'nul'"},
		{"\x00{}", "JSON parse error, stray ''|{}"},
	} {
		var p Parser
		if got := strings.Join(read(&p, []byte(c.in)), "|"); got != c.want {
			t.Errorf("%q: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	var p Parser
	if got := read(&p, []byte(strings.Repeat("[", 1024)+strings.Repeat("]", 1024))); len(got) != 1 || got[0][0] != '[' {
		t.Errorf("1024 levels: %.40q", got)
	}
	got := read(&p, []byte(strings.Repeat("[", 1025)+strings.Repeat("]", 1025)))
	if len(got) != 1026 || got[0] != "JSON nesting depth limit exceeded" || got[1] != "JSON parse error, expecting value" {
		t.Errorf("1025 levels: %d, %.80q", len(got), got)
	}
	p.MaxBytes = 10
	if got := read(&p, []byte(`"1234567890"`)); len(got) == 0 || got[0] != "JSON token size limit exceeded" {
		t.Errorf("a long string: %q", got)
	}
	p = Parser{}
	got = read(&p, []byte("["+strings.Repeat("1,", MaxTokens/2)))
	if len(got) != 1 || got[0] != "JSON token count limit exceeded" {
		t.Errorf("many tokens: %d, %.80q", len(got), got)
	}
}

func TestALargeValueIsNotKept(t *testing.T) {
	var p Parser
	read(&p, []byte(`"`+strings.Repeat("x", 1<<20)+`"`))
	if cap(p.text) > 64<<10 || len(p.text) > 0 || len(p.tokens) > 0 {
		t.Errorf("%d bytes are kept", cap(p.text))
	}
}

func TestFloatsThatAreNoNumbers(t *testing.T) {
	if s := string(Append(nil, math.NaN())); s != "nan" {
		t.Error(s)
	}
}

// Structured input: the fuzzer's bytes choose among pieces of JSON.
var pieces = [...]string{"{", "}", "[", "]", ":", ",", `"a"`, `'b'`, "1", "-", "0", ".", "e", "true", "null", "x", " ", "\n", "\r", "\t",
	`"\u`, "d83d", `\`, `"`, "\x00", "\xff", "\xfe", "\xc3", "é", "#", `{"execute":`, `"id":`, "1e400", "18446744073709551616", "01", "-0.0"}

func FuzzParser(f *testing.F) {
	f.Add([]byte(`{"execute":"query-name","id":1}`), false)
	f.Add([]byte{30, 6, 5, 31, 8, 1, 0, 6, 4, 9, 1}, true)
	f.Add([]byte("B#%000000000000000"), true)
	f.Add([]byte{29, 17, 2, 2, 25, 3, 20, 21, 23, 17}, true)
	f.Add([]byte(`{"id": 1, "execOOOOOute": {"execOOOOOute": 2, "id": 1}}`), false)
	f.Fuzz(func(t *testing.T, in []byte, structured bool) {
		if structured {
			var b bytes.Buffer
			for _, c := range in {
				b.WriteString(pieces[int(c)%len(pieces)])
			}
			in = b.Bytes()
		}
		p := Parser{MaxBytes: 1 << 16}
		for _, c := range in {
			for more, turns := true, 0; more; turns++ {
				if turns > 1 {
					t.Fatal("a byte is fed again and again")
				}
				var v any
				var err error
				var done bool
				if v, done, more, err = p.Feed(c); !done {
					continue
				}
				var se *SyntaxError
				if err != nil {
					if !errors.As(err, &se) || v != nil {
						t.Fatalf("%v, %T", v, err)
					}
					continue
				}
				check(t, v)
			}
		}
		// Whatever came, a stray and a line end bring it back.
		read(&p, []byte("\xff\n"))
		if got := read(&p, []byte("{}")); len(got) != 1 || got[0] != "{}" {
			t.Fatalf("after a reset: %q", got)
		}
	})
}

// check prints a value, reads it back and prints it again, twice. Members whose names
// share a bucket change places each time (the later is printed first), so that the
// second text is the first but for its order and the third is the first.
func check(t *testing.T, v any) {
	once := Append(nil, v)
	for _, c := range once {
		if c < 0x20 || c > 0x7e {
			t.Fatalf("%q is no ASCII", once)
		}
	}
	if bytes.Contains(once, []byte("inf")) || bytes.Contains(once, []byte("-0")) {
		return // no JSON, as QEMU's; and a minus zero is printed as what reads as zero
	}
	text := string(once)
	for range 2 {
		var p Parser
		again := read(&p, []byte(text+" "))
		if len(again) != 1 || len(again[0]) != len(once) || again[0] != string(once) && !crowded(v) {
			t.Fatalf("%q, then %q", text, again)
		}
		text = again[0]
	}
	if text != string(once) {
		t.Fatalf("%q, printed three times %q", once, text)
	}
}

// crowded says whether an object of v has two names in one bucket.
func crowded(v any) bool {
	switch v := v.(type) {
	case []any:
		return slices.ContainsFunc(v, crowded)
	case Object:
		seen := map[uint32]bool{}
		for _, m := range v {
			b := bucket(m.Name)
			if seen[b] || crowded(m.Value) {
				return true
			}
			seen[b] = true
		}
	}
	return false
}
