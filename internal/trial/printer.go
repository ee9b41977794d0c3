package trial

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
)

// A Printer shows runs: lines and a table for people, or JSON lines. On a
// terminal the status is one line that changes, otherwise one a second. With
// -repeat only one line per run is for people. Safe from any goroutine.
type Printer struct {
	W        io.Writer
	Terminal bool // people, and the cursor can go back
	JSON     bool
	Quiet    bool // people want one line per run

	mu       sync.Mutex
	line     cli.StatusLine
	next     time.Time    // for the next status
	gathered bytes.Buffer // lines of JSON that come a thousand a second, and wait for settle or what is printed next
}

// settle prints the lines that have gathered. It is called when no more are known to come at
// once: a write for each line would wake the reader once a line.
func (p *Printer) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put()
}

// put does what settle does; mu is held.
func (p *Printer) put() {
	if p.gathered.Len() > 0 {
		p.gathered.WriteTo(p.W)
	}
}

// Say prints a line for people.
func (p *Printer) Say(format string, args ...any) {
	if p.JSON {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Clear(p.W)
	fmt.Fprintf(p.W, format+"\n", args...)
}

// phase says what has just happened in a run.
func (p *Printer) phase(name, format string, args ...any) {
	if !p.Quiet {
		p.Say("%-11s %s", name, fmt.Sprintf(format, args...))
	}
}

// status shows how the run stands, if it is time for it.
func (p *Printer) status(r *Run) {
	if p.JSON || p.Quiet {
		return
	}
	now := time.Now()
	every := time.Second
	if p.Terminal {
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
	pauses := column(r.checkpoints[1:], func(c Checkpoint) int64 { return c.PauseUS })
	line := fmt.Sprintf("%-11s epoch %d  dirty %d  pause p50 %s p99 %s ms  held %d  released %d", "in step",
		last.Epoch, last.DirtyPages, ms(quantile(pauses, 0.5)), ms(quantile(pauses, 0.99)), last.Held, r.client.now().Released)
	if !r.killed.IsZero() {
		line = fmt.Sprintf("%-11s released %d", "alone", r.client.now().Released)
	}
	p.line.Show(p.W, p.Terminal, line)
}

// Object prints one JSON object.
func (p *Printer) Object(v any) {
	if !p.JSON {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put()
	json.NewEncoder(p.W).Encode(v)
}

// event prints an event, which is an object of JSON as QMP has it, with the side that it
// happened on.
func (p *Printer) event(side string, event json.RawMessage) {
	if !p.JSON {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(&p.gathered, `{"side":%q,%s`+"\n", side, event[1:])
}

// Start says what is about to run.
func (p *Printer) Start(o Config, backend, why string) {
	vcpus := "1 vCPU"
	if o.VCPUs > 1 {
		vcpus = fmt.Sprintf("%d vCPUs", o.VCPUs)
	}
	p.Say("%s", o.says())
	p.Say("backend %s: %s", backend, why)
	p.Say("guest: %s, %v of memory, %d pages written per round; a checkpoint every %v; mode %s; seed %d",
		vcpus, cli.Bytes(o.Mem), o.Dirty, o.Interval, o.Mode, o.Seed)
	if o.Disk > 0 {
		p.Say("disk: %v, a block of 512 bytes to 4K every %d rounds; %v%% of the rounds differ", cli.Bytes(o.Disk), diskEvery, o.Diverge)
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
	p.Object(map[string]start{"start": {backend, why, o.Mode, o.Interval.Microseconds(), o.Kill, o.KillAt, o.Seed}})
}

func (p *Printer) checkpoint(c Checkpoint) {
	if !p.JSON {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	json.NewEncoder(&p.gathered).Encode(map[string]Checkpoint{"checkpoint": c})
}

func (p *Printer) claim(c Claimed) { p.Object(c) }

func (p *Printer) kill(side string, pid int, where string, at time.Time) {
	type kill struct {
		Side  string    `json:"side"`
		PID   int       `json:"pid"`
		Where string    `json:"where"`
		Time  time.Time `json:"time"`
	}
	p.Object(map[string]kill{"kill": {side, pid, where, at}})
}

func (p *Printer) takeover(side string, epoch uint64, first time.Time) {
	type takeover struct {
		Side       string    `json:"side"`
		Epoch      uint64    `json:"epoch"`
		FirstFrame time.Time `json:"first_frame"` // at the client
	}
	p.Object(map[string]takeover{"takeover": {side, epoch, first}})
}

// handle says where a side is steered or watched.
func (p *Printer) handle(side string, h Handle) {
	p.phase(h.Name, "of %s at %s", called(side), h.Address)
	type handle struct {
		Side string `json:"side"`
		Handle
	}
	p.Object(map[string]handle{"handle": {side, h}})
}

// change shows a change of sides.
func (p *Printer) change(c Change) {
	switch c.Kind {
	case changeKilled:
		p.phase(c.Kind, "host %s; host %s went on after %s, and is protected again %s after the return of host %s", c.From, c.To, round3(c.Downtime), round3(c.Again), c.From)
	case changeStopped:
		p.phase(c.Kind, "host %s; host %s went on after %s; host %s was woken, let go %d frames, and protects again after %s", c.From, c.To, round3(c.Downtime), c.From, c.LateFrames, round3(c.Again))
	default:
		p.phase(c.Kind, "from host %s to host %s: the guest stood still for %s, and nothing was heard for %s; protected again after %s", c.From, c.To, round3(c.Stood), round3(c.Downtime), round3(c.Again))
	}
	type change struct {
		Kind     string  `json:"kind"`
		From     string  `json:"from"`
		To       string  `json:"to"`
		Downtime float64 `json:"downtime_ms"`
		Stood    float64 `json:"stood_still_ms,omitempty"`
		Again    float64 `json:"protected_again_ms"`
	}
	p.Object(map[string]change{"change": {c.Kind, c.From, c.To, milliseconds(c.Downtime), milliseconds(c.Stood), milliseconds(c.Again)}})
}

// Verdict ends a run that came to one.
func (p *Printer) Verdict(n int, r *Result) {
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
	v := r.Verdict
	p.Object(map[string]line{"run": {
		n, r.seed, v.Clean(), v.First, r.killedAt, r.survivor, milliseconds(r.failover()),
		v.Released, v.Lost, v.Duplicated, v.Contradicted, v.Corrupted,
	}})
	word := "clean"
	if !v.Clean() {
		word = "NOT CLEAN: " + v.First
	}
	if p.Quiet {
		p.Say("run %-5d seed %-11d failover %6.1f ms  %7d released  %4d twice  %s; %s", n, r.seed,
			milliseconds(r.failover()), v.Released, v.Duplicated, word, r.how())
	} else if v.Clean() {
		p.phase("verified", "every frame that left follows from the one before it, and %s remembers it", r.whose())
		if r.o.Disk > 0 {
			p.phase("", "its disk has what its memory has written, %d blocks, and nothing else", v.DiskBlocks)
		}
	} else {
		p.phase("VERIFIED", "%s", word)
	}
}
