package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// spoken is a connection over which bytes come, and then its end.
type spoken struct {
	net.Conn
	from    *bytes.Reader
	answers bytes.Buffer
}

func (s *spoken) Read(p []byte) (int, error)       { return s.from.Read(p) }
func (s *spoken) Write(p []byte) (int, error)      { return s.answers.Write(p) }
func (s *spoken) SetWriteDeadline(time.Time) error { return nil }
func (s *spoken) Close() error                     { return nil }

// checkConversation checks that the whole lines of said that fit are carried out, in their order, up to the first that does
// not, and nothing else.
func checkConversation(t *testing.T, said []byte) {
	t.Helper()
	var want [][]string
	for rest := said; ; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole || len(line)+1 > maxControlLine {
			break
		}
		want = append(want, strings.Fields(string(line)))
		rest = after
	}
	var done [][]string
	conn := &spoken{from: bytes.NewReader(said)}
	serveControl(t.Context(), conn, func() {}, func(words []string) (string, error) {
		done = append(done, words)
		if len(words)%2 == 1 {
			return "", errors.New("odd:\n" + strings.Join(words, " "))
		}
		return "fine", nil
	})
	if !slices.EqualFunc(done, want, slices.Equal[[]string]) {
		t.Errorf("%q: %q was carried out, want %q", said, done, want)
	}
	answers := conn.answers.String()
	if n := strings.Count(answers, "\n"); n != len(done) {
		t.Errorf("%q: %d lines were answered of %d", said, n, len(done))
	}
	for line := range strings.Lines(answers) {
		if len(line) > maxControlLine || line != "fine\n" && !strings.HasPrefix(line, "error odd:; ") {
			t.Errorf("%q: the answer is %q", said, line)
		}
	}
}

const wholeControl = "hello\nstart\ncheckpoint 1\ncheckpoint 18446744073709551615\n"

// A line that has been cut is none: "checkpoint 1" may be the beginning of "checkpoint 12".
func TestALineThatIsCutIsNotCarriedOut(t *testing.T) {
	for cut := range len(wholeControl) + 1 {
		checkConversation(t, []byte(wholeControl[:cut]))
	}
	for at := range len(wholeControl) {
		for _, with := range []byte{0, '\n', ' ', '9', 0xff} {
			checkConversation(t, []byte(wholeControl[:at]+string([]byte{with})+wholeControl[at+1:]))
		}
	}
	for _, n := range []int{maxControlLine - 1, maxControlLine, maxControlLine + 1} {
		checkConversation(t, []byte(strings.Repeat("x", n-1)+"\nhello\n"))
	}
}

func FuzzControlLine(f *testing.F) {
	f.Add([]byte(wholeControl))
	f.Add([]byte("\n\n checkpoint\t7 \r\n"))
	f.Fuzz(func(t *testing.T, said []byte) { checkConversation(t, said) })
}

// answering is a secondary that answers each line with text.
func answering(t *testing.T, text string) *control {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	go func() {
		defer there.Close()
		if _, err := there.Read(make([]byte, 64)); err == nil {
			io.WriteString(there, text)
		}
	}()
	return newControl(here)
}

func TestAnAnswerIsWhatItsWordsSay(t *testing.T) {
	long := "error " + strings.Repeat("x", maxControlLine-8)
	for _, c := range []struct{ text, rest, fails string }{
		{"loaded 1\n", "", ""},
		{"loaded 1 and more\n", "and more", ""},
		{"loaded 12\n", "", `says "loaded 12"`},
		{"loaded\n", "", `says "loaded"`},
		{"\n", "", `says ""`},
		{"loaded 1", "", "is lost"}, // and the connection ends
		{"", "", "is lost"},
		{long + "\n", "", `says "` + long + `"`},
		{long + "xx\n", "", "is lost"},
	} {
		rest, err := answering(t, c.text).ask(t.Context(), "checkpoint 1", "loaded 1")
		if rest != c.rest || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%.40q: %q, %v", c.text, rest, err)
		}
	}
}

// An error may have the names of files in it, and the words of several.
func TestALongErrorOfASecondaryIsHeard(t *testing.T) {
	for _, n := range []int{300, 10 * maxControlLine} {
		here, there := net.Pipe()
		go serveControl(t.Context(), there, func() {}, func([]string) (string, error) { return "", errors.New(strings.Repeat("x", n)) })
		_, err := newControl(here).ask(t.Context(), "checkpoint 1", "loaded 1")
		here.Close()
		if err == nil || !strings.Contains(err.Error(), "the secondary says \"error xxx") || len(err.Error()) < min(n, maxControlLine/2) {
			t.Errorf("%d bytes: %.80v", n, err)
		}
	}
}
