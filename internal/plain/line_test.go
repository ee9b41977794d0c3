package plain

import "testing"

func TestALineIsOneAndShowsWhatItIs(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"follows a":                       "follows a",
		`the disk "d" of 'x' in C:\y`:     `the disk "d" of 'x' in C:\y`,
		"gäst-名前":                         "gäst-名前",
		"one\ntwo\r\nthree\n":             "one; two; three",
		"a\nlockstep-gokvm: alone: here":  "a; lockstep-gokvm: alone: here",
		"a\x1b[31m\x1b]0;title\a":         `a\x1b[31m\x1b]0;title\a`,
		"\"a\"\\ \x9b \xff \u202e \u2028": `"a"\ \x9b \xff \u202e \u2028`,
		"�":                               "�",
	} {
		if got := Line(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if got := Line(Line(text)); got != want {
			t.Errorf("%q is another line the second time: %q", text, got)
		}
	}
}
