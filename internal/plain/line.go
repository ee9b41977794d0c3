package plain

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns a text as one line that a terminal shows as it is: line breaks become "; ", and
// what is no printable character, which a peer may have chosen to move the cursor or to feign
// another line, is written as in a Go string.
func Line(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	text = strings.Join(lines, "; ")
	if strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0 {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && n == 1:
			quoted := strconv.Quote(text[:1])
			b.WriteString(quoted[1 : len(quoted)-1])
		case r == '"' || r == '\\' || r == '\'':
			b.WriteRune(r)
		default:
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}
