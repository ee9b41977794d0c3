package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A printer shows runs: lines and a table for people, or JSON lines. On a
// terminal the status is one line that changes, otherwise one a second. With
// -repeat only one line per run is for people. Safe from any goroutine.
type printer struct {
	w        io.Writer
	terminal bool // people, and the cursor can go back
	json     bool
	quiet    bool // people want one line per run

	mu   sync.Mutex
	live bool // the cursor is on the status line
	next time.Time
}

// isTerminal reports whether f is one that can rewrite a line.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	term := os.Getenv("TERM")
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull && term != "" && term != "dumb"
}

// say prints a line for people.
func (p *printer) say(format string, args ...any) {
	if p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// phase says what has just happened in a run.
func (p *printer) phase(name, format string, args ...any) {
	if !p.quiet {
		p.say("%-11s %s", name, fmt.Sprintf(format, args...))
	}
}

// clear takes the status line away.
func (p *printer) clear() {
	if p.live {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.live = false
	}
}

// status shows how the run stands, if it is time for it.
func (p *printer) status(r *run) {
	if p.json || p.quiet {
		return
	}
	now := time.Now()
	every := time.Second
	if p.terminal {
		every = 100 * time.Millisecond
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.IsZero() {
		p.next = now.Add(every)
	}
	if now.Before(p.next) || len(r.checkpoints) < 2 {
		return
	}
	p.next = now.Add(every)
	last := r.checkpoints[len(r.checkpoints)-1]
	pauses := column(r.checkpoints[1:], func(c checkpoint) int64 { return c.PauseUS })
	line := fmt.Sprintf("%-11s epoch %d  dirty %d  pause p50 %s p99 %s ms  held %d  released %d", "in step",
		last.Epoch, last.DirtyPages, ms(quantile(pauses, 0.5)), ms(quantile(pauses, 0.99)), last.Held, r.client.now().Released)
	if !r.killed.IsZero() {
		line = fmt.Sprintf("%-11s released %d", "alone", r.client.now().Released)
	}
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	p.clear()
	fmt.Fprintf(p.w, "\x1b[?7l%s\x1b[?7h", line) // a narrow terminal cuts it
	p.live = true
}

// object prints one JSON object.
func (p *printer) object(v any) {
	if !p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	json.NewEncoder(p.w).Encode(v)
}

// event prints an event, which is an object of JSON as QMP has it, with the side that it
// happened on.
func (p *printer) event(side string, event json.RawMessage) {
	if !p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, `{"side":%q,%s`+"\n", side, event[1:])
}

// start says what is about to run.
func (p *printer) start(o options, backend, why string) {
	vcpus := "1 vCPU"
	if o.vcpus > 1 {
		vcpus = fmt.Sprintf("%d vCPUs", o.vcpus)
	}
	p.say("backend %s: %s", backend, why)
	p.say("guest: %s, %v of memory, %d pages written per round; a checkpoint every %v; mode %s; seed %d",
		vcpus, size(o.mem), o.dirty, o.interval, o.mode, o.seed)
	if o.disk > 0 {
		p.say("disk: %v, a block of 512 bytes to 4K every %d rounds; %v%% of the rounds differ", size(o.disk), diskEvery, o.diverge)
	}
	type start struct {
		Backend    string `json:"backend"`
		Why        string `json:"why"`
		Mode       string `json:"mode"`
		IntervalUS int64  `json:"interval_us"`
		Kill       string `json:"kill"`
		KillAt     string `json:"kill_at"`
		Seed       uint64 `json:"seed"`
	}
	p.object(map[string]start{"start": {backend, why, o.mode, o.interval.Microseconds(), o.kill, o.killAt, o.seed}})
}

func (p *printer) checkpoint(c checkpoint) {
	p.object(map[string]checkpoint{"checkpoint": c})
}

func (p *printer) claim(c claim, a answer) {
	p.object(struct {
		Claim  claim  `json:"claim"`
		Answer answer `json:"answer"`
	}{c, a})
}

func (p *printer) kill(side string, pid int, where string, at time.Time) {
	type kill struct {
		Side  string    `json:"side"`
		PID   int       `json:"pid"`
		Where string    `json:"where"`
		Time  time.Time `json:"time"`
	}
	p.object(map[string]kill{"kill": {side, pid, where, at}})
}

func (p *printer) takeover(side string, epoch uint64, first time.Time) {
	type takeover struct {
		Side       string    `json:"side"`
		Epoch      uint64    `json:"epoch"`
		FirstFrame time.Time `json:"first_frame"` // at the client
	}
	p.object(map[string]takeover{"takeover": {side, epoch, first}})
}

// verdict ends a run that came to one.
func (p *printer) verdict(n int, r *run) {
	type line struct {
		Run          int     `json:"run"`
		Seed         uint64  `json:"seed"`
		Clean        bool    `json:"clean"`
		First        string  `json:"first_fault,omitempty"`
		Killed       string  `json:"killed,omitempty"`
		Survivor     string  `json:"survivor"`
		Failover     float64 `json:"failover_ms"`
		Released     uint64  `json:"released"`
		Lost         uint64  `json:"lost"`
		Duplicated   uint64  `json:"duplicated"`
		Contradicted uint64  `json:"contradicted"`
		Corrupted    uint64  `json:"corrupted"`
	}
	v := r.verdict
	p.object(map[string]line{"run": {
		n, r.seed, v.clean(), v.First, r.killedAt, r.survivor, milliseconds(r.failover()),
		v.Released, v.Lost, v.Duplicated, v.Contradicted, v.Corrupted,
	}})
	word := "clean"
	if !v.clean() {
		word = "NOT CLEAN: " + v.First
	}
	if p.quiet {
		p.say("run %-5d seed %-11d failover %6.1f ms  %7d released  %4d twice  %s; %s", n, r.seed,
			milliseconds(r.failover()), v.Released, v.Duplicated, word, r.killedAt)
	} else if v.clean() {
		p.phase("verified", "every frame that left follows from the one before it, and the %s remembers it", r.survivor)
		if r.o.disk > 0 {
			p.phase("", "its disk has what its memory has written, %d blocks, and nothing else", v.DiskBlocks)
		}
	} else {
		p.phase("VERIFIED", "%s", word)
	}
}
