package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// The picture of a run: panels one above the other that share the axis of time,
// and a last one that looks closely at the failover.
const (
	pictureWidth = 1200
	plotLeft     = 84
	plotRight    = pictureWidth - 28
	panelGap     = 46
	panelsTop    = 138
)

// Colours that differ for colour-blind readers too (Paul Tol's "bright").
const (
	blue   = "#4477aa"
	cyan   = "#66ccee"
	green  = "#228833"
	yellow = "#ccbb44"
	red    = "#ee6677"
	purple = "#aa3377"
	grey   = "#888888"
)

// writeTimeline draws a run to a file.
func writeTimeline(path string, o options, backend string, r *result) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	w := bufio.NewWriter(f)
	drawTimeline(w, o, backend, r)
	return w.Flush()
}

// arrival is a frame at the client.
type arrival struct {
	at   time.Time
	vcpu int
	n    uint64
}

// panel is one plot of the picture.
type panel struct {
	height int
	draw   func(top, height int)
}

// drawTimeline draws a run.
func drawTimeline(w io.Writer, o options, backend string, r *result) {
	d := &drawing{w: w, r: r}
	var points []checkpoint
	for _, c := range r.checkpoints {
		if c.Epoch > 0 {
			points = append(points, c)
		}
	}
	end := r.started
	for _, frames := range r.frames {
		if len(frames) > 0 && frames[len(frames)-1].at.After(end) {
			end = frames[len(frames)-1].at
		}
	}
	d.span = axis{from: 0, to: d.seconds(end), lo: plotLeft, hi: plotRight}

	panels := []panel{
		{250, func(top, h int) { d.checkpoints(points, top, h) }},
		{100, func(top, h int) {
			d.bars(points, top, h, "Dirty pages sent in each checkpoint", blue, func(c checkpoint) float64 { return float64(c.DirtyPages) })
		}},
		{100, func(top, h int) {
			d.bars(points, top, h, "Packets held at each checkpoint's pause", purple, func(c checkpoint) float64 { return float64(c.Held) })
		}},
		{110, func(top, h int) { d.arrivals(o, top, h) }},
	}
	if len(r.throttled) > 0 {
		panels = append(panels, panel{80, d.throttling})
	}
	closeUp := !r.killed.IsZero() && !r.resumed.IsZero()
	height := panelsTop
	for _, p := range panels {
		height += p.height + panelGap
	}
	axisBottom := height - panelGap
	if closeUp {
		height += 300
	}

	d.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, 'Helvetica Neue', Arial, sans-serif" font-size="12" fill="#222">`, pictureWidth, height, pictureWidth, height)
	d.put(`<rect width="100%%" height="100%%" fill="#fff"/>`)
	d.text(plotLeft, 34, `font-size="20" font-weight="600"`, title(r))
	vcpus := "1 vCPU"
	if o.vcpus > 1 {
		vcpus = fmt.Sprintf("%d vCPUs", o.vcpus)
	}
	s := newSummary(o, backend, []*result{r}, 1)
	d.text(plotLeft, 56, `fill="#555"`, fmt.Sprintf("Backend %s, %s, %v of memory, a checkpoint every %v, early resume %v; primary paused %s ms p50, %s ms p99.",
		backend, vcpus, size(o.mem), o.interval, o.earlyResume, ms(s.PauseP50), ms(s.PauseP99)))
	d.text(plotLeft, 74, `fill="#555"`, fmt.Sprintf("%d packets left: %d lost, %d contradicted, %d corrupted, %d sent twice.",
		s.Released, s.Lost, s.Contradicted, s.Corrupted, s.Duplicated))

	top := panelsTop
	for _, p := range panels {
		p.draw(top, p.height)
		d.landmarks(top, p.height)
		top += p.height + panelGap
	}
	d.times(d.span, axisBottom, "seconds since the processes were started")
	d.landmarkNames(panelsTop - 32)
	if closeUp {
		d.closeUp(o, axisBottom+84, 200)
	}
	d.put(`</svg>`)
}

func title(r *result) string {
	if r.victim == "" {
		return fmt.Sprintf("Nobody was killed; the %s goes on alone from checkpoint %d", r.survivor, r.epoch)
	}
	return fmt.Sprintf("The %s was killed %s; the %s went on after %s ms", r.victim, r.killedAt, r.survivor, ms(r.failover().Microseconds()))
}

// drawing is an SVG document being written.
type drawing struct {
	w    io.Writer
	r    *result
	span axis // the run's time, in seconds
}

func (d *drawing) put(format string, args ...any) { fmt.Fprintf(d.w, format+"\n", args...) }

func (d *drawing) text(x, y float64, attributes, s string) {
	d.put(`<text x="%s" y="%s" %s>%s</text>`, px(x), px(y), attributes, html.EscapeString(s))
}

// seconds is an instant as the run's axis has it.
func (d *drawing) seconds(t time.Time) float64 { return t.Sub(d.r.started).Seconds() }

// axis maps values to pixels.
type axis struct{ from, to, lo, hi float64 }

func (a axis) at(v float64) float64 {
	if a.to == a.from {
		return a.lo
	}
	return a.lo + (v-a.from)/(a.to-a.from)*(a.hi-a.lo)
}

// step is a round distance of ticks, for about n of them.
func (a axis) step(n int) float64 {
	raw := (a.to - a.from) / float64(n)
	if raw <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, f := range []float64{1, 2, 5} {
		if f*unit >= raw*0.999 {
			return f * unit
		}
	}
	return 10 * unit
}

// ticks calls fn for each round value of the axis, about n of them.
func (a axis) ticks(n int, fn func(v float64, label string)) {
	step := a.step(n)
	digits := max(0, int(-math.Floor(math.Log10(step)+1e-9)))
	for i := math.Ceil(a.from/step - 1e-9); i*step <= a.to+step*1e-6; i++ {
		v := i*step + 0 // never -0
		fn(v, fmt.Sprintf("%.*f", digits, v))
	}
}

func px(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

// frame draws the frame of a panel and returns its vertical axis, from 0 to
// at least most.
func (d *drawing) frame(top, height int, name string, most float64) axis {
	y := axis{from: 0, to: max(most, 1e-9), lo: float64(top + height), hi: float64(top)}
	step := y.step(4)
	y.to = math.Ceil(y.to/step-1e-9) * step
	d.text(plotLeft, float64(top-10), `font-weight="600"`, name)
	y.ticks(4, func(v float64, label string) {
		d.put(`<line x1="%d" x2="%d" y1="%s" y2="%s" stroke="#ddd"/>`, plotLeft, plotRight, px(y.at(v)), px(y.at(v)))
		d.text(plotLeft-8, y.at(v)+4, `text-anchor="end" fill="#555"`, label)
	})
	return y
}

// times labels the axis of time under a panel.
func (d *drawing) times(x axis, bottom int, unit string) {
	x.ticks(12, func(v float64, label string) {
		d.put(`<line x1="%s" x2="%s" y1="%d" y2="%d" stroke="#555"/>`, px(x.at(v)), px(x.at(v)), bottom, bottom+5)
		d.text(x.at(v), float64(bottom+19), `text-anchor="middle" fill="#555"`, label)
	})
	d.text((plotLeft+plotRight)/2, float64(bottom+37), `text-anchor="middle" fill="#555"`, unit)
}

type key struct{ colour, name string }

// legend explains colours, at the right end of a panel's title line.
func (d *drawing) legend(top int, keys ...key) {
	x := float64(plotRight)
	for i := len(keys) - 1; i >= 0; i-- {
		x -= float64(len(keys[i].name))*6.9 + 26
		d.put(`<rect x="%s" y="%d" width="12" height="12" fill="%s"/>`, px(x), top-20, keys[i].colour)
		d.text(x+17, float64(top-10), `fill="#555"`, keys[i].name)
	}
}

// bar is the width of a checkpoint's bar, in pixels.
func (d *drawing) bar(points []checkpoint) float64 {
	if len(points) < 2 {
		return 12
	}
	first, last := points[0].Start, points[len(points)-1].Start
	each := (d.span.at(d.seconds(last)) - d.span.at(d.seconds(first))) / float64(len(points)-1)
	return min(max(each*0.7, 0.4), 24)
}

// checkpoints draws the spans of each checkpoint, upwards from its request.
func (d *drawing) checkpoints(points []checkpoint, top, height int) {
	whole := func(c checkpoint) float64 { return float64(c.TransferUS+c.CommitUS) / 1000 }
	longest := quantile(column(points, whole), 1)
	// A few that took much longer must not flatten the others.
	most := min(longest, 1.8*quantile(column(points, whole), 0.9))
	y := d.frame(top, height, "Each checkpoint, in milliseconds from its request", most)
	d.legend(top, key{cyan, "transfer: request to vmstate-received"}, key{green, "commit: to vmstate-loaded"}, key{red, "primary paused"})
	width := d.bar(points)
	for _, c := range points {
		x := d.span.at(d.seconds(c.Start))
		d.put(`<g><title>checkpoint %d (%s): paused %s ms (stood still %s ms), transfer %s ms, commit %s ms, %d pages, %d bytes, %d packets held</title>`,
			c.Epoch, html.EscapeString(string(c.Cause)), ms(c.PauseUS), ms(c.StoppedUS), ms(c.TransferUS), ms(c.CommitUS), c.DirtyPages, c.Bytes, c.Held)
		span := func(from, to int64, w float64, colour string) {
			lo, hi := min(float64(from)/1000, y.to), min(float64(to)/1000, y.to)
			d.put(`<rect x="%s" y="%s" width="%s" height="%s" fill="%s"/>`, px(x+(width-w)/2), px(y.at(hi)), px(w), px(y.at(lo)-y.at(hi)), colour)
		}
		span(0, c.TransferUS, width, cyan)
		span(c.TransferUS, c.TransferUS+c.CommitUS, width, green)
		span(c.PauseAtUS, c.PauseAtUS+c.PauseUS, max(width*0.6, 0.4), red)
		if whole(c) > y.to {
			d.text(x+width/2, float64(top)+10, `text-anchor="middle" font-size="9"`, fmt.Sprintf("▲%.0f", whole(c)))
		}
		d.put(`</g>`)
	}
}

// bars draws one figure of each checkpoint.
func (d *drawing) bars(points []checkpoint, top, height int, name, colour string, value func(checkpoint) float64) {
	y := d.frame(top, height, name, quantile(column(points, value), 1))
	width := d.bar(points)
	for _, c := range points {
		v := y.at(value(c))
		d.put(`<rect x="%s" y="%s" width="%s" height="%s" fill="%s"/>`, px(d.span.at(d.seconds(c.Start))), px(v), px(width), px(y.lo-v), colour)
	}
}

// arrivals draws how many packets came to the client.
func (d *drawing) arrivals(o options, top, height int) {
	bin := max(o.interval.Seconds()/4, d.span.to/400, 1e-3)
	bins := int(d.span.to/bin) + 1
	counts := make(map[string][]float64)
	most := 0.0
	for _, side := range []string{primary, secondary} {
		counts[side] = make([]float64, bins)
	}
	for side, frames := range d.r.frames {
		for _, f := range frames {
			if i := int(d.seconds(f.at) / bin); i >= 0 && i < bins && counts[side] != nil {
				counts[side][i]++
			}
		}
	}
	for i := range bins {
		most = max(most, counts[primary][i]+counts[secondary][i])
	}
	y := d.frame(top, height, fmt.Sprintf("Packets that reached the client, per %.3g ms", bin*1000), most)
	d.legend(top, key{blue, "from the primary"}, key{yellow, "from the secondary"})
	for i := range bins {
		x, next := d.span.at(float64(i)*bin), d.span.at(float64(i+1)*bin)
		below := 0.0
		for _, s := range []key{{blue, primary}, {yellow, secondary}} {
			if n := counts[s.name][i]; n > 0 {
				d.put(`<rect x="%s" y="%s" width="%s" height="%s" fill="%s"/>`, px(x), px(y.at(below+n)), px(max(next-x-0.5, 0.3)), px(y.at(below)-y.at(below+n)), s.colour)
				below += n
			}
		}
	}
}

// throttling draws how much the guest was slowed down.
func (d *drawing) throttling(top, height int) {
	y := d.frame(top, height, "Time that the guest's vCPUs were kept from running, per cent", 100)
	at, percent := d.span.from, 0
	fill := func(to float64) {
		if percent > 0 && to > at {
			v := y.at(float64(percent))
			d.put(`<rect x="%s" y="%s" width="%s" height="%s" fill="%s"><title>%d %% for %.3g s</title></rect>`,
				px(d.span.at(at)), px(v), px(d.span.at(to)-d.span.at(at)), px(y.lo-v), purple, percent, to-at)
		}
	}
	for _, t := range d.r.throttled {
		to := min(max(d.seconds(t.at), d.span.from), d.span.to)
		fill(to)
		at, percent = to, t.percent
	}
	fill(d.span.to)
}

// landmarks draws what divides the run, through one panel.
func (d *drawing) landmarks(top, height int) {
	line := func(t time.Time, colour string) {
		if !t.IsZero() {
			x := px(d.span.at(d.seconds(t)))
			d.put(`<line x1="%s" x2="%s" y1="%d" y2="%d" stroke="%s" stroke-width="1.5"/>`, x, x, top-4, top+height, colour)
		}
	}
	line(d.r.protected, grey)
	line(d.r.killed, red)
}

// landmarkNames says what the landmarks are.
func (d *drawing) landmarkNames(y int) {
	if t := d.r.protected; !t.IsZero() {
		d.text(d.span.at(d.seconds(t)), float64(y), `fill="#555"`, "▾ protected from here on")
	}
	if t := d.r.killed; !t.IsZero() {
		d.text(d.span.at(d.seconds(t))+5, float64(y), `text-anchor="end" fill="#c03040" font-weight="600"`, "SIGKILL "+d.r.victim+" ▾")
	}
}

// closeUp draws the frames around the failover one by one: when each came, and
// which round of the guest it was.
func (d *drawing) closeUp(o options, top, height int) {
	r := d.r
	before := min(5*o.interval/2, r.killed.Sub(r.protected))
	after := max(3*o.interval/2, 4*r.failover())
	from, to := r.killed.Add(-before), r.killed.Add(after)
	x := axis{from: -before.Seconds() * 1000, to: after.Seconds() * 1000, lo: plotLeft, hi: plotRight}
	low, high := uint64(math.MaxUint64), uint64(0)
	var shown []struct {
		arrival
		colour string
	}
	for _, s := range []key{{blue, primary}, {yellow, secondary}} {
		for _, f := range r.frames[s.name] {
			if f.vcpu == 0 && f.at.After(from) && f.at.Before(to) {
				low, high = min(low, f.n), max(high, f.n)
				shown = append(shown, struct {
					arrival
					colour string
				}{f, s.colour})
			}
		}
	}
	if len(shown) == 0 {
		return
	}
	y := axis{from: float64(low), to: max(float64(high), float64(low)+1), lo: float64(top + height), hi: float64(top)}
	d.text(plotLeft, float64(top-10), `font-weight="600"`, "The failover, packet by packet: which round of vCPU 0 reached the client when")
	d.legend(top, key{blue, "from the primary"}, key{yellow, "from the secondary"})
	y.ticks(6, func(v float64, label string) {
		d.put(`<line x1="%d" x2="%d" y1="%s" y2="%s" stroke="#ddd"/>`, plotLeft, plotRight, px(y.at(v)), px(y.at(v)))
		d.text(plotLeft-8, y.at(v)+4, `text-anchor="end" fill="#555"`, label)
	})
	dead, alive := x.at(0), x.at(milliseconds(r.failover()))
	d.put(`<rect x="%s" y="%d" width="%s" height="%d" fill="%s" fill-opacity="0.18"/>`, px(dead), top, px(alive-dead), height, red)
	d.put(`<line x1="%s" x2="%s" y1="%d" y2="%d" stroke="%s" stroke-width="1.5"/>`, px(dead), px(dead), top, top+height, red)
	d.put(`<line x1="%s" x2="%s" y1="%d" y2="%d" stroke="%s" stroke-width="1.5"/>`, px(alive), px(alive), top, top+height, green)
	for _, f := range shown {
		d.put(`<circle cx="%s" cy="%s" r="1.6" fill="%s"/>`, px(x.at(f.at.Sub(r.killed).Seconds()*1000)), px(y.at(float64(f.n))), f.colour)
	}
	d.text(dead-5, float64(top+16), `text-anchor="end" fill="#c03040" font-weight="600"`, "SIGKILL "+r.victim)
	d.text(alive+5, float64(top+height-8), `fill="#1a6b28" font-weight="600"`, fmt.Sprintf("%s's first packet, %s ms later", r.survivor, ms(r.failover().Microseconds())))
	d.times(x, top+height, "milliseconds from the kill")
}
