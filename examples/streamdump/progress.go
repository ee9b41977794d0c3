package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progress says now and then how far a long input has been read, on one line of
// a terminal. Elsewhere it says nothing: who reads errors from a file does not
// want it.
type progress struct {
	w     io.Writer // nil: nobody looks
	start time.Time
	next  time.Time
	said  bool
}

const progressEvery = 2 * time.Second

func newProgress(w io.Writer) *progress {
	now := time.Now()
	p := &progress{start: now, next: now.Add(progressEvery)}
	if terminal(w) {
		p.w = w
	}
	return p
}

// terminal reports whether somebody watches w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// at is told where in the input the dump is.
func (p *progress) at(offset int64) {
	if p.w == nil {
		return
	}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next, p.said = now.Add(progressEvery), true
	mib := float64(offset) / (1 << 20)
	fmt.Fprintf(p.w, "\r%.0f MiB read, %.0f MiB/s ", mib, mib/now.Sub(p.start).Seconds())
}

// done wipes the line.
func (p *progress) done() {
	if p.said {
		fmt.Fprintf(p.w, "\r%40s\r", "")
	}
}
