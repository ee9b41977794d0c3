package watch

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/timeline"
)

// A snapshot is all that the page shows at one moment.
type snapshot struct {
	Boot        string    `json:"boot"`
	Now         time.Time `json:"now"`
	Guest       string    `json:"guest"`
	State       string    `json:"state"`
	Since       time.Time `json:"since"`
	Tone        string    `json:"tone"`
	Sentence    string    `json:"sentence"`
	Reason      string    `json:"reason,omitempty"`
	Error       string    `json:"error,omitempty"`
	ErrorAt     time.Time `json:"errorAt,omitzero"`
	Here        side      `json:"here"`
	There       side      `json:"there"`
	Copies      []copied  `json:"copies"`
	Figures     []fact    `json:"figures"`
	Picture     string    `json:"picture"`
	Checkpoints []row     `json:"checkpoints"`
	Flows       []flowRow `json:"flows"`
	Omitted     uint64    `json:"omitted,omitempty"`
	Events      []line    `json:"events"`
	Actions     []action  `json:"actions,omitempty"`
	Token       string    `json:"token,omitempty"`
}

// A side is one of the two hosts, as this one knows it.
type side struct {
	Host  string `json:"host"`
	Role  string `json:"role"`
	Facts []fact `json:"facts"`
}

// A fact is a name and a value, both as text.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// copied says how much of something has been copied to the other host.
type copied struct {
	What    string `json:"what"`
	Percent int    `json:"percent"`
	Text    string `json:"text"`
}

// A row is one of the last checkpoints.
type row struct {
	Epoch    uint64 `json:"epoch"`
	Cause    string `json:"cause"`
	Pause    string `json:"pause"`
	Transfer string `json:"transfer"`
	Commit   string `json:"commit"`
	Pages    uint64 `json:"pages"`
	Bytes    string `json:"bytes"`
}

// flowRow is a row of the page's table of flows that differ.
type flowRow struct {
	Flow   string    `json:"flow"`
	Count  uint64    `json:"count"`
	Reason string    `json:"reason"`
	Apart  bool      `json:"apart"`
	Last   time.Time `json:"last"`
}

// How many of the recorded entries the page shows.
const (
	shownCheckpoints = 10
	shownFlows       = 10
)

// snapshot returns what the page shows now, with a picture of that width.
func (p *Page) snapshot(width int) snapshot {
	in, now := p.cfg.Job.Query(), time.Now()
	s := snapshot{
		Boot: p.boot, Now: now, Guest: in.Guest, State: in.State.String(), Since: in.Since, Reason: in.Reason,
		Here: here(in, now), There: there(in), Copies: copies(in), Figures: figures(in),
	}
	s.Sentence, s.Tone = sentence(in)
	if in.LastError != nil {
		s.Error, s.ErrorAt = in.LastError.Error(), in.LastErrorAt
	}
	if p.cfg.Control {
		s.Actions, s.Token = actions(in), p.token
	}
	live := timeline.Live{Span: Span, Width: width}
	p.mu.Lock()
	live.Now = time.Now() // nothing that is remembered is later
	live.Checkpoints, live.Samples, live.Marks = slices.Clone(p.rec.checkpoints), slices.Clone(p.rec.samples), slices.Clone(p.rec.marks)
	s.Events = append([]line{}, p.rec.events...)
	s.Flows, s.Omitted = p.rec.most(), p.rec.omitted
	s.Copies = append(s.Copies, p.rec.copies()...)
	s.Figures = append(s.Figures, p.rec.latency()...)
	p.mu.Unlock()
	slices.Reverse(s.Events)
	s.Checkpoints = rows(live.Checkpoints)
	s.Picture = live.Picture()
	return s
}

func here(in protect.Info, now time.Time) side {
	s := side{Host: in.Host, Role: in.Role.String()}
	gate := "shut: nothing of the guest leaves"
	switch {
	case in.Open && in.Until.IsZero():
		gate = "open, until somebody shuts it"
	case in.Open:
		gate = fmt.Sprintf("open, for %.1f s unless renewed", max(0, in.Until.Sub(now).Seconds()))
	}
	s.Facts = []fact{{"Generation", fmt.Sprint(in.Generation)}, {"Gate", gate}}
	if in.Session != nil {
		s.Facts = append(s.Facts, fact{"Checkpoint", fmt.Sprint(in.Session.Epoch)})
	}
	s.Facts = append(s.Facts, fact{"Takeovers", fmt.Sprint(in.Stats.Takeovers)}, fact{"Switchovers", fmt.Sprint(in.Stats.Switchovers)})
	if d := in.Stats.Downtime; d > 0 {
		s.Facts = append(s.Facts, fact{"Last switchover", "stood still for " + short(d)})
	}
	return s
}

// there describes the other host, as far as that follows from the state of this one.
func there(in protect.Info) side {
	s := side{Host: in.Peer, Role: "none"}
	if in.Peer == "" {
		s.Facts = []fact{{"Connection", "none"}}
		return s
	}
	connection := "in step"
	switch in.State {
	case protect.Synchronising, protect.Protected, protect.SwitchingOver:
		s.Role = "secondary"
	case protect.Following:
		s.Role = "primary"
	default:
		s.Role, connection = "not known", "lost"
	}
	if in.State == protect.Synchronising || in.State == protect.Following && !whole(in) {
		connection = "synchronising"
	}
	s.Facts = []fact{{"Generation", fmt.Sprint(in.Generation)}, {"Connection", connection}}
	if in.Session != nil && connection == "in step" {
		s.Facts = append(s.Facts, fact{"Checkpoint", fmt.Sprint(in.Session.Epoch)})
	}
	return s
}

func copies(in protect.Info) []copied {
	g := in.Progress
	if g == nil {
		return []copied{}
	}
	c := copied{What: "Memory", Percent: percent(g.Total-min(g.Total, g.Remaining), g.Total), Text: size(g.Sent) + " sent of " + size(g.Total)}
	if g.Left > 0 {
		c.Text += fmt.Sprintf(", about %v left", max(g.Left.Round(time.Second), time.Second))
	}
	return []copied{c}
}

func (r *record) copies() (all []copied) {
	for _, d := range r.disks {
		c := copied{What: "Disk " + d.Disk, Percent: 100}
		if d.Total > 0 {
			c.Percent = percent(uint64(max(0, d.Total-d.Remaining)), uint64(d.Total))
		}
		c.Text = fmt.Sprintf("%s sent, %s the same, %s to go", size(uint64(max(0, d.Copied))), size(uint64(max(0, d.Same))), size(uint64(max(0, d.Remaining))))
		if left := d.Left(); left > 0 {
			c.Text += fmt.Sprintf(", about %v left", max(left.Round(time.Second), time.Second))
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b copied) int { return cmp.Compare(a.What, b.What) })
	return all
}

func percent(done, total uint64) int {
	if total == 0 {
		return 100
	}
	return int(min(100, 100*float64(done)/float64(total)))
}

func figures(in protect.Info) []fact {
	s := in.Session
	if s == nil {
		return []fact{}
	}
	all := []fact{
		{"Checkpoints", fmt.Sprint(s.Checkpoints)},
		{"Guest paused", spread(s.Pause)},
		{"Transfer", spread(s.Transfer)},
		{"Commit", spread(s.Commit)},
	}
	if s.Mode == event.ModePrimary || s.LastMode == event.ModePrimary {
		held := fmt.Sprintf("%d packets, %s", s.Held.Packets, size(uint64(max(0, s.Held.Bytes))))
		if s.Held.Age > 0 {
			held += ", the oldest for " + short(s.Held.Age)
		}
		all = append(all, fact{"Output of a checkpoint kept at most", spread(s.Hold)}, fact{"Output held now", held})
	}
	all = append(all, fact{"Checkpoint bytes", size(s.Bytes)})
	if s.Throttle > 0 {
		all = append(all, fact{"Slowed down by", fmt.Sprintf("%d %%", s.Throttle)})
	}
	return all
}

// spread returns the last value of a figure and, from its histogram, a bound for most values.
func spread(f colo.Figure) string {
	if f.Max == 0 {
		return "–"
	}
	s := "last " + short(f.Last)
	if q := f.Histogram.Quantile(0.99); q > 0 && q < f.Max {
		s += ", 99 % below " + short(q)
	}
	return s + ", longest " + short(f.Max)
}

// latency returns how long the packets that left in the last Span were kept.
func (r *record) latency() []fact {
	if !r.counts || len(r.totals) == 0 {
		return nil
	}
	l := r.left.Since(&r.totals[0].left)
	if l.N() == 0 {
		return []fact{{"Output latency, last minute", "no packet has left"}}
	}
	return []fact{{"Output latency, last minute", fmt.Sprintf("half of %d packets %s or less, 99 %% %s, longest %s", l.N(), short(l.Quantile(0.5)), short(l.Quantile(0.99)), short(l.Max()))}}
}

func rows(all []timeline.Checkpoint) []row {
	out := []row{}
	for i := len(all) - 1; i >= 0 && len(out) < shownCheckpoints; i-- {
		c := all[i]
		cause := string(c.Cause)
		if cause == "" {
			cause = "–"
		}
		out = append(out, row{c.Epoch, cause, short(c.Pause), short(c.Transfer), short(c.Commit), c.Pages, size(c.Bytes)})
	}
	return out
}

// most returns the flows that diverge most.
func (r *record) most() []flowRow {
	all := []flowRow{}
	for f, e := range r.flows {
		if e.count > 0 || e.apart {
			all = append(all, flowRow{name(f), e.count, e.reason, e.apart, e.last})
		}
	}
	slices.SortFunc(all, func(a, b flowRow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Flow, b.Flow))
	})
	return all[:min(len(all), shownFlows)]
}

func name(f event.Flow) string {
	protocol := fmt.Sprintf("protocol %d", f.Protocol)
	switch f.Protocol {
	case 1:
		protocol = "ICMP"
	case 6:
		protocol = "TCP"
	case 17:
		protocol = "UDP"
	case 58:
		protocol = "ICMPv6"
	}
	s := fmt.Sprintf("%s %s → %s", protocol, f.Source, f.Destination)
	if f.VLAN > 0 {
		s += fmt.Sprintf(" (VLAN %d)", f.VLAN)
	}
	return s
}

func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 4 {
		v, i = v/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
