package main

import (
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
)

// progress prints now and then how far a long input has been read, on one line of a
// terminal. If standard error is no terminal it prints nothing.
type progress struct {
	w     io.Writer // nil: nobody looks
	start time.Time
	next  time.Time
	line  cli.StatusLine
}

const progressEvery = 2 * time.Second

func newProgress(w io.Writer) *progress {
	now := time.Now()
	p := &progress{start: now, next: now.Add(progressEvery)}
	if cli.IsTerminal(w) {
		p.w = w
	}
	return p
}

// at takes the offset in the input up to which the dump has come.
func (p *progress) at(offset int64) {
	if p.w == nil {
		return
	}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(progressEvery)
	mib := float64(offset) / (1 << 20)
	p.line.Show(p.w, true, fmt.Sprintf("%.0f MiB read, %.0f MiB/s", mib, mib/now.Sub(p.start).Seconds()))
}

// done wipes the line.
func (p *progress) done() {
	if p.w != nil {
		p.line.Clear(p.w)
	}
}
