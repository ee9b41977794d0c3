package qjson

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// Append prints a value as QEMU's monitor does: ASCII on one line, ", " and ": "
// between, the members of an object as [Object.Sorted] has them.
func Append(to []byte, value any) []byte {
	switch v := value.(type) {
	case nil:
		return append(to, "null"...)
	case bool:
		return strconv.AppendBool(to, v)
	case int64:
		return strconv.AppendInt(to, v, 10)
	case uint64:
		return strconv.AppendUint(to, v, 10)
	case float64:
		return appendFloat(to, v)
	case string:
		return AppendString(to, v)
	case []any:
		to = append(to, '[')
		for i, e := range v {
			if i > 0 {
				to = append(to, ", "...)
			}
			to = Append(to, e)
		}
		return append(to, ']')
	case Object:
		to = append(to, '{')
		for i, m := range v.Sorted() {
			if i > 0 {
				to = append(to, ", "...)
			}
			to = append(AppendString(to, m.Name), ": "...)
			to = Append(to, m.Value)
		}
		return append(to, '}')
	}
	panic("qjson: a value of no JSON type") // the caller's mistake, never the peer's
}

// appendFloat prints 17 significant digits, as few as are not zeros.
func appendFloat(to []byte, f float64) []byte {
	switch {
	case math.IsInf(f, 1):
		return append(to, "inf"...)
	case math.IsInf(f, -1):
		return append(to, "-inf"...)
	case math.IsNaN(f):
		return append(to, "nan"...)
	}
	// As C's %.17g: an exponent below -4 or above 16 is written as one, with
	// two digits at least.
	text := strconv.AppendFloat(nil, f, 'e', 16, 64)
	e := len(text) - 1
	for text[e] != 'e' {
		e--
	}
	exp, _ := strconv.Atoi(string(text[e+1:]))
	if exp >= -4 && exp < 17 {
		return trim(to, strconv.AppendFloat(nil, f, 'f', 16-exp, 64))
	}
	return append(trim(to, text[:e]), text[e:]...)
}

// trim appends a number without the zeros at the end of its fraction.
func trim(to, n []byte) []byte {
	for i := range n {
		if n[i] == '.' {
			for n[len(n)-1] == '0' {
				n = n[:len(n)-1]
			}
			if n[len(n)-1] == '.' {
				n = n[:len(n)-1]
			}
			break
		}
	}
	return append(to, n...)
}

const hex = "0123456789ABCDEF"

// AppendString prints a string. What is no UTF-8 is printed as U+FFFD, one for a
// sequence.
func AppendString(to []byte, s string) []byte {
	to = append(to, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			to = append(to, c)
			i++
			continue
		}
		switch c {
		case '"', '\\':
			to, i = append(to, '\\', c), i+1
			continue
		case '\b':
			to, i = append(to, '\\', 'b'), i+1
			continue
		case '\f':
			to, i = append(to, '\\', 'f'), i+1
			continue
		case '\n':
			to, i = append(to, '\\', 'n'), i+1
			continue
		case '\r':
			to, i = append(to, '\\', 'r'), i+1
			continue
		case '\t':
			to, i = append(to, '\\', 't'), i+1
			continue
		}
		r, n := sequence(s[i:])
		i += n
		if r > 0xffff {
			r -= 0x10000
			to = appendU(to, 0xd800+r>>10)
			r = 0xdc00 + r&0x3ff
		}
		to = appendU(to, r)
	}
	return append(to, '"')
}

func appendU(to []byte, r rune) []byte {
	return append(to, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// sequence takes one UTF-8 sequence, good or bad, off the beginning of a string:
// a bad one goes as far as its first byte promises or a byte that cannot
// continue it, and is U+FFFD. QEMU takes two bytes for U+0000 as good, and
// U+FFFE and U+FFFF, of every plane, and U+FDD0 to U+FDEF as bad.
func sequence(s string) (r rune, n int) {
	c := s[0]
	want := 1
	switch {
	case c < 0x80:
		return rune(c), 1
	case c < 0xc0 || c > 0xfd:
		return utf8.RuneError, 1
	case c < 0xe0:
		want = 2
	case c < 0xf0:
		want = 3
	case c < 0xf8:
		want = 4
	case c < 0xfc:
		want = 5
	default:
		want = 6
	}
	for n = 1; n < want && n < len(s) && s[n]&0xc0 == 0x80; n++ {
	}
	if n == want && want == 2 && s[:2] == "\xc0\x80" {
		return 0, 2
	}
	r, size := utf8.DecodeRuneInString(s[:n])
	if n < want || size != n || !character(r) {
		return utf8.RuneError, n
	}
	return r, n
}

// character reports whether a code point may be in a string.
func character(r rune) bool {
	return r >= 0 && r <= utf8.MaxRune && (r < 0xd800 || r > 0xdfff) && r&0xfffe != 0xfffe && (r < 0xfdd0 || r > 0xfdef)
}
