package qjson

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// reader walks over the tokens of a value. Their depth is bounded.
type reader struct {
	text   []byte
	tokens []token
	i      int
}

func parse(text []byte, tokens []token) (any, error) {
	r := &reader{text: text, tokens: tokens}
	return r.value()
}

// next returns the next token, with partial if there is none.
func (r *reader) next() (k kind, text []byte) {
	if r.i == len(r.tokens) {
		return partial, nil
	}
	from := uint32(0)
	if r.i > 0 {
		from = r.tokens[r.i-1].end
	}
	t := r.tokens[r.i]
	r.i++
	return t.kind, r.text[from:t.end]
}

// is takes the next token if it is the punctuation c.
func (r *reader) is(c byte) bool {
	k, text := r.next()
	if k == punct && text[0] == c {
		return true
	}
	if k != partial {
		r.i--
	}
	return false
}

func (r *reader) value() (any, error) {
	k, text := r.next()
	switch k {
	case punct:
		switch text[0] {
		case '{':
			return r.object()
		case '[':
			return r.array()
		}
	case str:
		return unquote(text)
	case integer, float:
		return number(string(text), k)
	case keyword:
		switch string(text) {
		case "true":
			return true, nil
		case "false":
			return false, nil
		case "null":
			return nil, nil
		}
		// QEMU has 1023 bytes for all that it says of what it cannot parse.
		message := "invalid keyword '" + string(text) + "'"
		return nil, syntaxError("%s", message[:min(len(message), 1023)])
	}
	return nil, syntaxError("expecting value")
}

func (r *reader) object() (any, error) {
	o := Object{}
	if r.is('}') {
		return o, nil
	}
	seen := make(map[string]struct{})
	for {
		key, err := r.value()
		if err != nil {
			return nil, err
		}
		name, ok := key.(string)
		if !ok {
			return nil, syntaxError("key is not a string in object")
		}
		if !r.is(':') {
			return nil, syntaxError("missing : in object pair")
		}
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		if _, twice := seen[name]; twice {
			return nil, syntaxError("duplicate key")
		}
		seen[name] = struct{}{}
		o = append(o, Member{name, value})
		if r.is('}') {
			return o, nil
		}
		if !r.is(',') {
			return nil, syntaxError("expected separator in dict")
		}
	}
}

func (r *reader) array() (any, error) {
	a := []any{}
	if r.is(']') {
		return a, nil
	}
	for {
		value, err := r.value()
		if err != nil {
			return nil, err
		}
		a = append(a, value)
		if r.is(']') {
			return a, nil
		}
		if !r.is(',') {
			return nil, syntaxError("expected separator in list")
		}
	}
}

// number returns an int64 if it can be, then a uint64, then a float64, which is
// infinite if it must.
func number(text string, k kind) (any, error) {
	if k == integer {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n, nil
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return n, nil
		}
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return nil, syntaxError("expecting value") // cannot be: the lexer has let it pass
	}
	return f, nil
}

// unquote returns what a string means. Its bytes between the quotes are none of
// 0x00 to 0x1F, 0xFE and 0xFF.
func unquote(text []byte) (any, error) {
	s := string(text[1 : len(text)-1])
	var b strings.Builder
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\\':
			n, r, err := escape(s[i:], string(text[1+i:]))
			if err != nil {
				return nil, err
			}
			b.WriteRune(r)
			i += n
		default:
			r, n := sequence(s[i:])
			if r == utf8.RuneError && s[i:i+n] != "\uFFFD" {
				return nil, syntaxError("invalid UTF-8 sequence in string")
			}
			b.WriteRune(r)
			i += n
		}
	}
	return b.String(), nil
}

// escape returns the length and the meaning of an escape sequence; raw is s with
// the quote at the end of the string, which an error's text may show.
func escape(s, raw string) (n int, r rune, err error) {
	if len(s) < 2 {
		return 0, 0, syntaxError("invalid escape sequence in string")
	}
	switch s[1] {
	case '"', '\'', '\\', '/':
		return 2, rune(s[1]), nil
	case 'b':
		return 2, '\b', nil
	case 'f':
		return 2, '\f', nil
	case 'n':
		return 2, '\n', nil
	case 'r':
		return 2, '\r', nil
	case 't':
		return 2, '\t', nil
	case 'u':
		n, r = 6, hex4(s[2:])
		if r >= 0xd800 && r < 0xdc00 && len(s) >= 8 && s[6] == '\\' && s[7] == 'u' {
			if low := hex4(s[8:]); low >= 0xdc00 && low < 0xe000 {
				n, r = 12, 0x10000+(r-0xd800)<<10+(low-0xdc00)
			}
		}
		if !character(r) {
			return 0, 0, syntaxError("%s is not a valid Unicode character", raw[:min(len(raw), 6)])
		}
		return n, r, nil
	}
	return 0, 0, syntaxError("invalid escape sequence in string")
}

// hex4 reads four hexadecimal digits, -1 if they are not there.
func hex4(s string) rune {
	if len(s) < 4 {
		return -1
	}
	n, err := strconv.ParseUint(s[:4], 16, 32)
	if err != nil {
		return -1
	}
	return rune(n)
}
