package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/plain"
)

// printer tells what happens: lines and a progress line for people, or JSON
// lines, the events as QMP has them. Safe from any goroutine.
type printer struct {
	terminal
	json bool

	mu   sync.Mutex
	line cli.StatusLine
	next time.Time     // for the next progress line
	max  time.Duration // the longest pause since the last one
}

// say prints a line for people.
func (p *printer) say(format string, args ...any) {
	if p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Clear(p.out)
	fmt.Fprintf(p.out, format+"\n", printable(args)...)
}

// warn prints a line that is to be seen in any case.
func (p *printer) warn(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Clear(p.out)
	fmt.Fprintf(p.err, "lockstep-qemu: "+format+"\n", printable(args)...)
}

// asIs is a text that is printed as it is: the command lines that are to be copied from here.
type asIs string

// printable returns args with each text and error as plain.Line has it, since a peer may
// have chosen some of its words.
func printable(args []any) []any {
	list := make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case string:
			list[i] = plain.Line(a)
		case error:
			list[i] = plain.Line(a.Error())
		default:
			list[i] = a
		}
	}
	return list
}

// event takes what a session reports.
func (p *printer) event(r event.Record) {
	if p.json {
		p.object(r)
		return
	}
	switch e := r.Event.(type) {
	case event.CheckpointCommit:
		p.checkpoint(r.Time, e)
	case event.DiskBroken:
		p.say("disk        %s takes no more checkpoints: %s", e.Disk, e.Error)
	case event.DiskOverlayHalfFull:
		p.say("disk        %s: %s since the last checkpoint, at most %s; a shorter x-checkpoint-delay is due", e.Disk, size(uint64(e.Bytes)), size(uint64(e.Bound)))
	case event.COLOExit:
		if e.Error != "" {
			p.say("lost        %s", plainly(e.Error))
		} else {
			p.say("ordered     to go on without the primary")
		}
	}
}

// plainly returns why a session has ended, in words for an operator if there are some.
func plainly(why string) string {
	for _, w := range []struct{ end, words string }{
		{": EOF", "the primary closed the connection"},
		{": unexpected EOF", "the primary closed the connection"},
		{"connection reset by peer", "the primary closed the connection"},
		{"broken pipe", "the primary closed the connection"},
		{"i/o timeout", "the primary is silent"},
	} {
		if strings.HasSuffix(why, w.end) {
			return w.words + where(why)
		}
	}
	return why
}

// where returns the checkpoint in which the session has ended, or that it has come after, as an error says.
func where(why string) string {
	_, rest, _ := strings.Cut(why, ": checkpoint ")
	n, rest, ok := strings.Cut(rest, ": ")
	op, _, _ := strings.Cut(rest, ": ")
	switch {
	case !ok:
		return ""
	case op == "wait" || op == "resume" || op == "send vmstate-loaded" || op == "send checkpoint-ready": // that one is here
		return ", after checkpoint " + n
	case n == "0":
		return ", in the first copy of its memory"
	}
	return ", in checkpoint " + n
}

// checkpoint prints a line of progress, if it is time for one.
func (p *printer) checkpoint(now time.Time, c event.CheckpointCommit) {
	took := time.Duration(c.PauseNS)
	if c.Epoch == 0 {
		p.say("received    %s of memory in %.1f s; protected from now on", size(c.Bytes), took.Seconds())
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.max = max(p.max, took)
	every := 10 * time.Second
	if p.live {
		every = 100 * time.Millisecond
	}
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(every)
	p.line.Show(p.out, p.live, fmt.Sprintf("checkpoint  %d  %d pages  %s  %.1f ms (at most %.1f)", c.Epoch, c.Pages, size(c.Bytes),
		1e3*took.Seconds(), 1e3*p.max.Seconds()))
	p.max = 0
}

// object prints one JSON object.
func (p *printer) object(v any) {
	if !p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b, err := json.Marshal(v)
	if err != nil {
		b = fmt.Appendf(nil, `{"error": %q}`, err.Error())
	}
	fmt.Fprintf(p.out, "%s\n", b)
}

// size formats a number of bytes for people.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

// oneLine returns the text of an error as one line, for what is not printed here.
func oneLine(err error) string { return plain.Line(err.Error()) }
