package trial

import (
	"fmt"
	"io"
	"math"
	"time"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/timeline"
)

// The picture of a run: panels one above the other that share the axis of time,
// and a last one that looks closely at the failover.
const (
	pictureWidth = 1200
	panelGap     = 46
	panelsTop    = 160
)

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

// DrawTimeline draws a run as an SVG picture.
func DrawTimeline(w io.Writer, o Config, backend string, r *Result) error {
	d := &drawing{Canvas: timeline.Canvas{Width: pictureWidth, Left: 84, Right: pictureWidth - 28}, r: r}
	var points []Checkpoint
	for _, c := range r.checkpoints {
		if c.Epoch > 0 {
			points = append(points, c)
			d.bars = append(d.bars, c.bar())
		}
	}
	end := r.started
	for _, frames := range r.frames {
		if len(frames) > 0 && frames[len(frames)-1].at.After(end) {
			end = frames[len(frames)-1].at
		}
	}
	// What comes before the protection is not what the picture is about.
	from := 0.0
	if !r.protected.IsZero() {
		from = d.seconds(r.protected)
		from = max(0, from-0.03*(d.seconds(end)-from))
	}
	d.span = timeline.Axis{From: from, To: d.seconds(end), Lo: float64(d.Left), Hi: float64(d.Right)}

	panels := []panel{
		{250, func(top, h int) { d.Checkpoints(d.bars, d.at, top, h, 0) }},
		{100, func(top, h int) {
			d.Bars(d.bars, d.at, top, h, "Dirty pages sent in each checkpoint", "blue", func(c timeline.Checkpoint) float64 { return float64(c.Pages) })
		}},
		{100, func(top, h int) { d.latency(points, top, h) }},
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

	left := float64(d.Left)
	d.Text(left, 34, "title", title(r))
	vcpus := "1 vCPU"
	if o.VCPUs > 1 {
		vcpus = fmt.Sprintf("%d vCPUs", o.VCPUs)
	}
	s := Summarise(o, backend, []*Result{r}, 1)
	d.Text(left, 56, "soft", fmt.Sprintf("Backend %s, %s, %v of memory, a checkpoint every %v, early resume %v; primary paused %s ms p50, %s ms p99.",
		backend, vcpus, cli.Bytes(o.Mem), o.Interval, o.EarlyResume, ms(s.PauseP50), ms(s.PauseP99)))
	d.Text(left, 74, "soft", fmt.Sprintf("%d packets left: %d lost, %d contradicted, %d corrupted, %d sent twice.",
		s.Released, s.Lost, s.Contradicted, s.Corrupted, s.Duplicated))
	d.Keys(88, append(timeline.CauseKeys(d.bars), timeline.SpanKeys()...)...)

	top := panelsTop
	for _, p := range panels {
		p.draw(top, p.height)
		d.landmarks(top, p.height)
		top += p.height + panelGap
	}
	d.Times(d.span, axisBottom, "seconds since the processes were started")
	d.landmarkNames(panelsTop - 32)
	if closeUp {
		d.closeUp(o, axisBottom+84, 200)
	}
	return d.WriteDocument(w, height)
}

func title(r *Result) string {
	if r.victim == "" {
		return fmt.Sprintf("Nobody was killed; the %s goes on alone from checkpoint %d", r.survivor, r.epoch)
	}
	return fmt.Sprintf("The %s was killed %s; the %s went on after %s ms", r.victim, r.killedAt, r.survivor, ms(r.failover().Microseconds()))
}

// drawing is a picture of a run being drawn.
type drawing struct {
	timeline.Canvas
	r    *Result
	span timeline.Axis // the run's time, in seconds
	bars []timeline.Checkpoint
}

// seconds returns an instant as the run's axis has it.
func (d *drawing) seconds(t time.Time) float64 { return t.Sub(d.r.started).Seconds() }

// at is where an instant is.
func (d *drawing) at(t time.Time) float64 { return d.span.At(d.seconds(t)) }

// bar returns a checkpoint as it is drawn.
func (c Checkpoint) bar() timeline.Checkpoint {
	us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	return timeline.Checkpoint{
		At: c.Start, Epoch: c.Epoch, Cause: c.Cause, PauseAt: us(c.PauseAtUS), Pause: us(c.PauseUS), Stopped: us(c.StoppedUS),
		Transfer: us(c.TransferUS), Commit: us(c.CommitUS), Pages: c.DirtyPages, Bytes: c.Bytes,
	}
}

// latency draws how long a packet that waited for a checkpoint was kept at most:
// from the end of the pause before, when its epoch began, to vmstate-received.
func (d *drawing) latency(points []Checkpoint, top, height int) {
	held := make(map[uint64]float64, len(points))
	for i, c := range points {
		begin := d.r.protected
		if i > 0 {
			before := points[i-1].bar()
			begin = before.At.Add(before.PauseAt + before.Pause)
		}
		if c.Held > 0 && !begin.IsZero() {
			held[c.Epoch] = milliseconds(c.Start.Add(c.bar().Transfer).Sub(begin))
		}
	}
	name := "Output latency of what waited for the checkpoint, at most, in milliseconds"
	if n := len(points); n > 0 {
		if t := points[n-1].Traffic; t != nil && t.Matched > 0 {
			name += fmt.Sprintf("; of what both guests said: %s ms p50, %s ms p99", ms(t.LatencyP50US), ms(t.LatencyP99US))
		}
	}
	d.Bars(d.bars, d.at, top, height, name, "purple", func(c timeline.Checkpoint) float64 { return max(0, held[c.Epoch]) })
}

// The colours of the sides.
var fromPrimary, fromSecondary = timeline.Key{Class: "blue", Name: "from the primary"}, timeline.Key{Class: "yellow", Name: "from the secondary"}

// arrivals draws how many packets came to the client.
func (d *drawing) arrivals(o Config, top, height int) {
	bin := max(o.Interval.Seconds()/4, d.span.To/400, 1e-3)
	bins := int(d.span.To/bin) + 1
	counts := make(map[string][]float64)
	most := 0.0
	for _, side := range []string{Primary, Secondary} {
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
		most = max(most, counts[Primary][i]+counts[Secondary][i])
	}
	y := d.Panel(top, height, fmt.Sprintf("Packets that reached the client, per %.3g ms", bin*1000), most)
	d.Legend(top, fromPrimary, fromSecondary)
	for i := max(0, int(d.span.From/bin)); i < bins; i++ {
		x, next := max(d.span.At(float64(i)*bin), d.span.Lo), d.span.At(float64(i+1)*bin)
		below := 0.0
		for _, s := range []timeline.Key{{Class: fromPrimary.Class, Name: Primary}, {Class: fromSecondary.Class, Name: Secondary}} {
			if n := counts[s.Name][i]; n > 0 {
				d.Rect(x, y.At(below+n), max(next-x-0.5, 0.3), y.At(below)-y.At(below+n), s.Class)
				below += n
			}
		}
	}
}

// throttling draws how much the guest was slowed down.
func (d *drawing) throttling(top, height int) {
	y := d.Panel(top, height, "Time that the guest's vCPUs were kept from running, per cent", 100)
	at, percent := d.span.From, 0
	fill := func(to float64) {
		if percent > 0 && to > at {
			v := y.At(float64(percent))
			d.Rect(d.span.At(at), v, d.span.At(to)-d.span.At(at), y.Lo-v, "purple")
		}
	}
	for _, t := range d.r.throttled {
		to := min(max(d.seconds(t.at), d.span.From), d.span.To)
		fill(to)
		at, percent = to, t.percent
	}
	fill(d.span.To)
}

// landmarks draws what divides the run, through one panel.
func (d *drawing) landmarks(top, height int) {
	line := func(t time.Time, class string) {
		if !t.IsZero() {
			d.Upright(d.at(t), top-4, top+height, class)
		}
	}
	line(d.r.protected, "line-grey")
	line(d.r.killed, "line-red")
}

// landmarkNames says what the landmarks are.
func (d *drawing) landmarkNames(y int) {
	if t := d.r.protected; !t.IsZero() {
		d.Text(d.at(t), float64(y), "soft", "▾ protected from here on")
	}
	if t := d.r.killed; !t.IsZero() {
		d.Text(d.at(t)+5, float64(y), "alarm name end", "SIGKILL "+d.r.victim+" ▾")
	}
}

// closeUp draws the frames around the failover one by one: when each came, and
// which round of the guest it was.
func (d *drawing) closeUp(o Config, top, height int) {
	r := d.r
	before := min(5*o.Interval/2, r.killed.Sub(r.protected))
	after := max(3*o.Interval/2, 4*r.failover())
	from, to := r.killed.Add(-before), r.killed.Add(after)
	x := timeline.Axis{From: -before.Seconds() * 1000, To: after.Seconds() * 1000, Lo: float64(d.Left), Hi: float64(d.Right)}
	low, high := uint64(math.MaxUint64), uint64(0)
	var shown []struct {
		arrival
		class string
	}
	for _, s := range []timeline.Key{{Class: fromPrimary.Class, Name: Primary}, {Class: fromSecondary.Class, Name: Secondary}} {
		for _, f := range r.frames[s.Name] {
			if f.vcpu == 0 && f.at.After(from) && f.at.Before(to) {
				low, high = min(low, f.n), max(high, f.n)
				shown = append(shown, struct {
					arrival
					class string
				}{f, s.Class})
			}
		}
	}
	if len(shown) == 0 {
		return
	}
	y := timeline.Axis{From: float64(low), To: max(float64(high), float64(low)+1), Lo: float64(top + height), Hi: float64(top)}
	d.Text(float64(d.Left), float64(top-10), "name", "The failover, packet by packet: which round of vCPU 0 reached the client when")
	d.Legend(top, fromPrimary, fromSecondary)
	d.Grid(y, 6)
	dead, alive := x.At(0), x.At(milliseconds(r.failover()))
	d.Rect(dead, float64(top), alive-dead, float64(height), "red veil")
	d.Upright(dead, top, top+height, "line-red")
	d.Upright(alive, top, top+height, "line-green")
	for _, f := range shown {
		d.Put(`<circle cx="%s" cy="%s" r="1.6" class="%s"/>`, timeline.Px(x.At(f.at.Sub(r.killed).Seconds()*1000)), timeline.Px(y.At(float64(f.n))), f.class)
	}
	d.Text(dead-5, float64(top+16), "alarm name end", "SIGKILL "+r.victim)
	d.Text(alive+5, float64(top+height-8), "good name", fmt.Sprintf("%s's first packet, %s ms later", r.survivor, ms(r.failover().Microseconds())))
	d.Times(x, top+height, "milliseconds from the kill")
}
