package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// IsTerminal reports whether w is a terminal that can rewrite a line.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	term := os.Getenv("TERM")
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull && term != "" && term != "dumb"
}

// A StatusLine writes lines of which the last may be a status. On a terminal the next line, or
// the next status, takes the place of a status. It is not safe for concurrent use.
type StatusLine struct {
	shown bool // the cursor is on a status, from Show to Clear
}

// Show writes a status to w, of parts with ", " between them. On a terminal the cursor stays on it, and of
// what is longer than the terminal is wide the last parts are left out; elsewhere the status is a line
// like any other.
func (l *StatusLine) Show(w io.Writer, terminal bool, status string) {
	if !terminal {
		fmt.Fprintln(w, status)
		return
	}
	l.Clear(w)
	// Where the width is not known, the terminal cuts: it writes each character that has no room over the one
	// in the last column.
	fmt.Fprintf(w, "\x1b[?7l%s\x1b[?7h", fit(status, columns(w)))
	l.shown = true
}

// fit returns as many of the parts of a status as n columns have room for, and what there is room for of the first one if
// that is too long itself. A number is not cut in two unless it is in the first. If n is 0 it is all of them.
func fit(status string, n int) string {
	if n == 0 || len(status) <= n {
		return status
	}
	if end := strings.LastIndex(status[:n+1], ","); end > 0 {
		return status[:end]
	}
	return status[:n]
}

// Clear takes a status away, if there is one, before a line is written to w.
func (l *StatusLine) Clear(w io.Writer) {
	if l.shown {
		fmt.Fprint(w, "\r\x1b[K")
		l.shown = false
	}
}
