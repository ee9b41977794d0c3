// Package plain makes texts that others have chosen fit for logs and terminals, where they are printed
// among words of this side. Text is called when a text is read from the other side, so that only its
// result is kept; Line is called by a program that prints a text which may contain one.
package plain

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text returns a text of at most so many bytes that is one line: what cannot be printed, with which a
// terminal's cursor could be moved or another line be feigned, is a space in it, and what is not
// UTF-8 a question mark. One that is longer is cut between two characters, and ends in "..." then.
// most is at least three.
func Text(text string, most int) string {
	cut := len(text) > most // looked at no further: the other side has made it as long as it could
	if cut {
		text = text[:most]
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if !cut {
		return text
	}
	end := min(len(text), most-len("..."))
	for end > 0 && end < len(text) && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}

// Is reports whether all of a text can be printed in one line as it is.
func Is(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
