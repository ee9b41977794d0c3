package plain_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gocolo/lockstep/internal/plain"
)

func TestATextOfTheOtherSideIsOneLineThatCanBePrinted(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "",
		"b is waiting":                "b is waiting",
		"größer, 大":                   "größer, 大",
		"no\nERROR all is lost":       "no ERROR all is lost",
		"\x1b[2J\x1b]0;title\x07":     " [2J ]0;title ",
		"half \xff\xfe of it":         "half ? of it",
		"left\u202eright":             "left right",
		"01234567890123456789":        "01234567890123456789",
		"012345678901234567890":       "01234567890123456...",
		"0123456789012345大89":         "0123456789012345...",
		"01234567890123456789\n":      "01234567890123456...",
		strings.Repeat("\xff", 1<<20): "?...",
		strings.Repeat("大", 100):      "大大大大大...",
	} {
		got := plain.Text(text, 20)
		if got != want {
			t.Errorf("%.30q: %q, want %q", text, got, want)
		}
		if !plain.Is(got) {
			t.Errorf("%q cannot be printed", got)
		}
		if plain.Is(text) != (text == want || len(text) > 20 && utf8.ValidString(text) && !strings.Contains(text, "\n")) {
			t.Errorf("%.30q is said to be plain: %t", text, plain.Is(text))
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("no\nERROR\x1b[2J\xff大", 12)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = 3 + most&0xff
		got := plain.Text(text, most)
		if len(got) > most || !plain.Is(got) {
			t.Errorf("of %q, at most %d bytes: %q", text, most, got)
		}
		if plain.Is(text) && len(text) <= most && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}
