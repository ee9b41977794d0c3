package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/plain"
)

// A printer tells what happens: for people on standard error, or, with -json, an
// object per line on standard output, events as QMP has them and a summary at
// the end. Safe from any goroutine.
type printer struct {
	o        options
	std      stdio
	terminal *console
	started  time.Time

	mu      sync.Mutex
	summary summary
	pages   samples[uint64]
	pauses  samples[int64] // of each checkpoint, microseconds
	lost    time.Time      // when the session ended
	exit    event.COLOExit // how the last session ended
	ending  bool           // it is about to end in good order
	saving  bool           // the guest is being saved, which ends its session
	state   string         // the last state of the job, in its word
	reason  string         // why it came to that, as it was told
	wrong   string         // what trouble was told last
	away    bool           // the arbiter does not answer
	back    bool           // it has not answered before, and does again
	inStep  bool           // the two hosts have had a checkpoint in common since they met
	epoch   uint64         // the number of the last checkpoint
	status  func() string
}

// summary is the last line with -json. A figure is 0 where there was nothing to
// measure.
type summary struct {
	Mode          string                 `json:"mode"`
	Checkpoints   uint64                 `json:"checkpoints"` // without the initial synchronisation
	Loads         uint64                 `json:"loads"`       // of them, those that this host has loaded, as a secondary
	Causes        map[event.Cause]uint64 `json:"causes"`      // of them; a primary's
	DirtyPagesP50 uint64                 `json:"dirty_pages_p50"`
	PauseP50      int64                  `json:"pause_us_p50"`
	PauseP99      int64                  `json:"pause_us_p99"`
	Failover      *parting               `json:"failover,omitempty"`
	Takeovers     uint64                 `json:"takeovers,omitempty"`   // how often this host has taken the guest over
	Switchovers   uint64                 `json:"switchovers,omitempty"` // from this host
	Downtime      float64                `json:"switchover_ms,omitempty"`
	Network       *netFigures            `json:"network,omitempty"`
	Move          *moveFigures           `json:"move,omitempty"`
	Seconds       float64                `json:"seconds"`
	Error         string                 `json:"error,omitempty"`
}

// figures adds what a job has counted.
func (s *summary) figures(j protect.Stats, n *netFigures) {
	s.Takeovers, s.Switchovers = j.Takeovers, j.Switchovers
	s.Downtime = float64(j.Downtime.Microseconds()) / 1000
	s.Network = n
}

// parting is how a side went on alone.
type parting struct {
	Epoch  uint64  `json:"epoch"`  // it goes on from
	Cause  string  `json:"cause"`  // why the pair ended
	Resume float64 `json:"ms"`     // from there to the guest running, the decision included
	Reason string  `json:"reason"` // of COLO_EXIT
}

// netFigures count the primary's output by how it left.
type netFigures struct {
	Matched    uint64 `json:"released_at_match"`
	Checkpoint uint64 `json:"released_at_checkpoint"`
	Diverged   uint64 `json:"diverged"`
}

// moveFigures say how a guest that nobody protects has moved.
type moveFigures struct {
	Postcopy  bool    `json:"postcopy"`              // it ran before its memory was there
	Downtime  float64 `json:"downtime_ms,omitempty"` // of a source, until the other host had its devices
	Passes    int     `json:"passes,omitempty"`      // of a source, over memory
	Bytes     uint64  `json:"bytes,omitempty"`       // that a source has sent
	Recovered int     `json:"recovered,omitempty"`   // connections after the first
	Memory    float64 `json:"memory_ms,omitempty"`   // of a destination: how long it ran without all its memory
	Touched   uint64  `json:"touched,omitempty"`     // pages that it has waited for
}

func newPrinter(o options, std stdio, c *console) *printer {
	return &printer{
		o: o, std: std, terminal: c, started: time.Now(), status: func() string { return "" },
		summary: summary{Mode: o.mode, Causes: make(map[event.Cause]uint64)},
	}
}

// say prints a line for people.
func (p *printer) say(format string, args ...any) {
	if p.o.json {
		return
	}
	p.terminal.say(p.std.err, "lockstep-gokvm: "+plain.Line(fmt.Sprintf(format, args...))+"\n")
}

// object prints one line of JSON.
func (p *printer) object(v any) {
	if !p.o.json {
		return
	}
	line, err := json.Marshal(v)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.std.out.Write(append(line, '\n'))
}

// phase says what has just happened, with a word for machines.
func (p *printer) phase(name, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.say("%s: %s", name, text)
	type phase struct {
		Name string    `json:"name"`
		Text string    `json:"text"`
		Time time.Time `json:"time"`
	}
	p.object(map[string]phase{"phase": {name, text, time.Now()}})
}

// portOfMine matches the address from which a connection was made, whose port is another each time.
var portOfMine = regexp.MustCompile(`\S+->`)

// lasting returns what of a text is the same when the same goes wrong again.
func lasting(text string) string { return portOfMine.ReplaceAllString(text, "") }

// event is called with every event of the session.
func (p *printer) event(r event.Record) {
	switch e := r.Event.(type) {
	case event.CheckpointCommit:
		p.committed(e)
	case event.DiskSynchronised:
		p.phase("disk", "the secondary has a copy: %v sent in %v", cli.Bytes(e.Copied), time.Duration(e.ElapsedNS).Round(time.Millisecond))
	case event.DiskBroken:
		if p.isEnding() { // on purpose, and no copy drifts from the other
			return
		}
		p.phase("disk", "the copies drift apart: %s", e.Error)
	case event.Arbitration:
		p.arbiter(e)
	case event.COLOExit:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lost, p.exit = r.Time, e
	}
}

// arbiter prints that the arbiter answers again. It prints also that it does not, where it had answered
// again: trouble would take that for what was told already.
func (p *printer) arbiter(e event.Arbitration) {
	p.mu.Lock()
	was, told := p.away, p.back
	switch e.Answer {
	case event.ArbiterUnreachable:
		p.away, p.back = true, false
	case event.ArbiterGranted, event.ArbiterRefused:
		p.away, p.back = false, p.back || p.away
	}
	away := p.away
	text := plain.Line("protect: the arbiter does not answer: " + e.Error)
	if away && told {
		p.wrong = lasting(text)
	}
	p.mu.Unlock()
	switch {
	case away && told:
		p.phase("trouble", "%s", text)
	case was && !away:
		p.phase("arbiter", "it answers again")
	}
}

// trouble says what goes wrong, once. It says nothing where that was said already: as the reason
// of the state, as what the host has waited for, or as why the arbiter cannot decide.
func (p *printer) trouble(err error) {
	text := oneLine(err)
	p.mu.Lock()
	same := lasting(text)
	known := same == p.wrong || same == lasting(p.reason) || errors.Is(err, errUndecided)
	p.wrong = same
	p.mu.Unlock()
	if !known {
		p.phase("trouble", "%s", text)
	}
}

// changed is called with each new state of the job.
func (p *printer) changed(e event.JobStatusChange) {
	p.mu.Lock()
	was, inStep, ending := p.state, p.inStep, p.ending
	p.state, p.reason = e.State, oneLine(errors.New(e.Reason))
	if e.State == protect.Waiting.String() {
		p.wrong = lasting(p.reason)
	}
	epoch := p.epoch
	switch e.State {
	case protect.Protected.String():
		p.inStep = true
	case protect.Synchronising.String(), protect.Following.String(), protect.Waiting.String(), protect.Alone.String():
		p.inStep = false // another session, or none
	}
	p.mu.Unlock()
	switch e.State {
	case protect.Alone.String():
		switch was {
		case "", protect.Created.String(), protect.Waiting.String():
			p.phase("started", "the guest runs here, unprotected yet, in generation %d: %s", e.Generation, e.Reason)
		case protect.Paused.String():
			p.phase("unprotected", "the other host is sought")
		default:
			if !inStep {
				p.phase("unprotected", "the guest runs here only: %s", e.Reason)
				return
			}
			if !ending {
				p.wentAlone(epoch)
			}
		}
	case "", protect.Concluded.String(), protect.Protected.String(): // "": the job has been dismissed
	default:
		p.phase(e.State, "%s", e.Reason)
	}
}

func (p *printer) committed(e event.CheckpointCommit) {
	p.mu.Lock()
	p.epoch, p.inStep = e.Epoch, true
	p.mu.Unlock()
	if e.Epoch == 0 {
		p.phase("protected", "%v of memory are on both sides; %v were sent, and it is %v since the start",
			cli.Bytes(p.o.mem), cli.Bytes(e.Bytes>>10<<10), time.Since(p.started).Round(time.Millisecond))
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.summary.Checkpoints++
	if e.Mode == event.ModeSecondary {
		p.summary.Loads++
	}
	if e.Cause != "" {
		p.summary.Causes[e.Cause]++
	}
	p.pages.add(e.Pages)
	p.pauses.add(e.PauseNS / 1000)
}

// wentAlone prints that the pair has ended and this side goes on.
func (p *printer) wentAlone(epoch uint64) {
	p.mu.Lock()
	f := &parting{Epoch: epoch, Cause: p.exit.Error, Reason: string(p.exit.Reason)}
	p.summary.Failover = f
	if !p.lost.IsZero() {
		f.Resume = float64(time.Since(p.lost).Microseconds()) / 1000
	}
	text := fmt.Sprintf("the guest goes on here, unprotected, from checkpoint %d; %.1f ms after the pair ended", epoch, f.Resume)
	if f.Cause != "" {
		text += ": " + f.Cause
	}
	p.mu.Unlock()
	p.phase("alone", "%s", text)
}

// progress returns a line that describes the present state.
func (p *printer) progress() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.summary
	return fmt.Sprintf("%d checkpoints%s, dirty p50 %d, pause p50 %.2f p99 %.2f ms%s", s.Checkpoints, causes(s.Causes),
		p.pages.quantile(0.5), float64(p.pauses.quantile(0.5))/1000, float64(p.pauses.quantile(0.99))/1000, p.status())
}

// causes lists how many checkpoints had which cause, by name, in brackets; "" if none is known, as
// on a host that has only followed.
func causes(of map[event.Cause]uint64) string {
	var list []string
	for _, c := range slices.Sorted(maps.Keys(of)) {
		list = append(list, fmt.Sprintf("%d %s", of[c], c))
	}
	if len(list) == 0 {
		return ""
	}
	return " (" + strings.Join(list, ", ") + ")"
}

// setStatus adds what fn returns to the line of progress.
func (p *printer) setStatus(fn func() string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = fn
}

// willEnd says that this program ends on purpose: connections that break from now on are no
// failures.
func (p *printer) willEnd() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = true
}

func (p *printer) isEnding() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending || p.saving
}

// saves says that the guest begins to be saved, or that this is over: meanwhile its session
// ends, if it is not over already.
func (p *printer) saves(begins bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.saving = begins
}

// note changes the summary.
func (p *printer) note(change func(*summary)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.summary)
}

// end prints the summary.
func (p *printer) end(err error) {
	p.mu.Lock()
	s := p.summary
	s.DirtyPagesP50 = p.pages.quantile(0.5)
	s.PauseP50, s.PauseP99 = p.pauses.quantile(0.5), p.pauses.quantile(0.99)
	s.Seconds = math.Round(time.Since(p.started).Seconds()*1000) / 1000
	if err != nil {
		s.Error = oneLine(err)
	}
	p.mu.Unlock()
	if s.Checkpoints > 0 {
		p.say("%s", p.progress())
	}
	p.object(map[string]summary{"summary": s})
}

// samples are the last values of a figure, as many as it takes for a good
// quantile.
type samples[T uint64 | int64] struct {
	values []T
	next   int
}

const maxSamples = 1 << 16

func (s *samples[T]) add(v T) {
	if len(s.values) < maxSamples {
		s.values = append(s.values, v)
		return
	}
	s.values[s.next] = v
	s.next = (s.next + 1) % maxSamples
}

// quantile returns the smallest value that at least the share q of the values
// does not exceed, 0 of none.
func (s *samples[T]) quantile(q float64) T {
	if len(s.values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.values))
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
