package main

import (
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/internal/statusline"
)

// progress says now and then how far a long input has been read, on one line of
// a terminal. Elsewhere it says nothing: who reads errors from a file does not
// want it.
type progress struct {
	w     io.Writer // nil: nobody looks
	start time.Time
	next  time.Time
	line  statusline.Line
}

const progressEvery = 2 * time.Second

func newProgress(w io.Writer) *progress {
	now := time.Now()
	p := &progress{start: now, next: now.Add(progressEvery)}
	if statusline.IsTerminal(w) {
		p.w = w
	}
	return p
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
