package cli

import (
	"fmt"
	"io"
	"os"
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

// Show writes a status to w. A terminal keeps the cursor on it, and cuts what is longer
// than the terminal is wide; elsewhere the status is a line like any other.
func (l *StatusLine) Show(w io.Writer, terminal bool, status string) {
	if !terminal {
		fmt.Fprintln(w, status)
		return
	}
	l.Clear(w)
	fmt.Fprintf(w, "\x1b[?7l%s\x1b[?7h", status)
	l.shown = true
}

// Clear takes a status away, if there is one, before a line is written to w.
func (l *StatusLine) Clear(w io.Writer) {
	if l.shown {
		fmt.Fprint(w, "\r\x1b[K")
		l.shown = false
	}
}
