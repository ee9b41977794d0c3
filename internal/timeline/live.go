package timeline

import (
	"fmt"
	"html"
	"time"
)

// A Sample is an observation of a guest that runs, at one moment.
type Sample struct {
	At      time.Time
	Held    int64         // bytes of output that wait
	Packets uint64        // that have left since the sample before; Latency is theirs
	Latency time.Duration // the median of how long they were kept
	P99     time.Duration // what 99 of 100 of them were not kept longer than
	Longest time.Duration // what none of them was kept longer than
	// Bound: nobody counts packets. Latency and Longest are the median and the longest
	// of what each checkpoint since the sample before has kept output at most; 0: there
	// was none.
	Bound bool
}

// top is where the bar of the latency ends; 0: there is none.
func (s Sample) top() time.Duration {
	switch {
	case s.Bound:
		return s.Longest
	case s.Packets > 0:
		return max(s.P99, time.Microsecond)
	}
	return 0
}

// A Mark draws a line through the picture where something changed, such as a state.
type Mark struct {
	At    time.Time
	Name  string
	Alarm bool
}

// A Live is a picture of the present: what came before is at most Span old.
type Live struct {
	Now         time.Time
	Span        time.Duration
	Width       int // width of the picture in pixels
	Checkpoints []Checkpoint
	Samples     []Sample
	Marks       []Mark
}

// Picture draws it, as an element of a page and with the words of what it shows.
func (l *Live) Picture() string {
	width := min(max(l.Width, 280), 4000)
	c := &Canvas{Width: width, Left: 46, Right: width - 12}
	from := l.Now.Add(-l.Span)
	// What has begun lately has the whole width all the same.
	if first, ok := l.first(); ok && first.After(from) {
		from = first
	}
	if young := l.Now.Add(-2 * time.Second); from.After(young) {
		from = young
	}
	span := Axis{From: -l.Now.Sub(from).Seconds(), To: 0, Lo: float64(c.Left), Hi: float64(c.Right)}
	x := func(t time.Time) float64 { return span.At(-l.Now.Sub(t).Seconds()) }
	seen := after(l.Checkpoints, from, func(p Checkpoint) time.Time { return p.At })
	samples := after(l.Samples, from, func(s Sample) time.Time { return s.At })

	top := c.Keys(2, append(CauseKeys(seen), SpanKeys()...)...) + 40
	begin := top
	c.Checkpoints(seen, x, top, 150, 4)
	top += 150 + 42
	c.latency(samples, x, top, 70)
	top += 70 + 42
	c.held(samples, x, top, 60)
	bottom := top + 60
	c.marks(l.Marks, x, from, begin, bottom)
	c.Times(span, bottom, "seconds from now")
	return c.Element(bottom+46, l.words(seen, samples))
}

// first returns the time of the first checkpoint or sample in the picture.
func (l *Live) first() (t time.Time, ok bool) {
	if len(l.Checkpoints) > 0 {
		t, ok = l.Checkpoints[0].At, true
	}
	for _, m := range l.Marks {
		if !ok || m.At.Before(t) {
			t, ok = m.At, true
		}
	}
	return t, ok
}

func after[T any](all []T, from time.Time, at func(T) time.Time) []T {
	for i, v := range all {
		if !at(v).Before(from) {
			return all[i:]
		}
	}
	return nil
}

// words describes the picture in words.
func (l *Live) words(seen []Checkpoint, samples []Sample) string {
	latency := ""
	if n, p99 := summary(samples); n > 0 {
		latency = fmt.Sprintf(" %d packets left; in the worst quarter of a second 99 of 100 were kept for %s ms or less.", n, millis(p99))
	}
	if len(seen) == 0 {
		return "Timeline: no checkpoints lately." + latency
	}
	var pause, whole []float64
	for _, p := range seen {
		pause, whole = append(pause, ms(p.Pause)), append(whole, p.whole())
	}
	return fmt.Sprintf("Timeline: %d checkpoints in the last %.0f seconds; the guest paused for %.2f ms (median), at most %.2f ms; a checkpoint took %.2f ms (median), at most %.2f ms.",
		len(seen), l.Now.Sub(seen[0].At).Seconds(), Quantile(pause, 0.5), Quantile(pause, 1), Quantile(whole, 0.5), Quantile(whole, 1)) + latency
}

// summary returns how many packets have left, and the longest P99.
func summary(samples []Sample) (packets uint64, p99 time.Duration) {
	for _, s := range samples {
		packets += s.Packets
		p99 = max(p99, s.P99)
	}
	return packets, p99
}

// latency draws how long output was kept: a bar from the median to what 99 of 100
// packets were not kept longer than.
func (c *Canvas) latency(samples []Sample, x func(time.Time) float64, top, height int) {
	title := "Output latency of packets that left, ms (median to 99 %)"
	var most []float64
	for _, s := range samples {
		most = append(most, ms(s.top()))
		if s.Bound {
			title = "Output latency at most, ms (median to longest)"
		}
	}
	y := c.Panel(top, height, title, Quantile(most, 1))
	for _, s := range samples {
		if s.top() == 0 {
			continue
		}
		hi, lo := y.At(ms(s.top())), y.At(ms(s.Latency))
		if s.Bound {
			c.Put(`<g><title>median %s ms, longest %s ms</title>`, millis(s.Latency), millis(s.Longest))
		} else {
			c.Put(`<g><title>packets %d, median %s ms, 99 %% %s ms, longest %s ms</title>`, s.Packets, millis(s.Latency), millis(s.P99), millis(s.Longest))
		}
		c.Rect(x(s.At)-1, hi, 2.5, max(lo-hi, 2), "purple")
		c.Put(`</g>`)
	}
}

// held draws how much output waits.
func (c *Canvas) held(samples []Sample, x func(time.Time) float64, top, height int) {
	var most []float64
	for _, s := range samples {
		most = append(most, float64(s.Held)/1024)
	}
	y := c.Panel(top, height, "Output held, KiB", Quantile(most, 1))
	for i, s := range samples {
		end := x(s.At) + 2
		if i+1 < len(samples) {
			end = min(x(samples[i+1].At), x(s.At)+8)
		}
		v := y.At(most[i])
		c.Rect(x(s.At), v, end-x(s.At), y.Lo-v, "cyan")
	}
}

// marks draws what divides the time, with their names above the panels, as far as
// there is room for them.
func (c *Canvas) marks(all []Mark, x func(time.Time) float64, from time.Time, top, bottom int) {
	room := float64(c.Width)
	for i := len(all) - 1; i >= 0; i-- {
		m := all[i]
		if m.At.Before(from) {
			break
		}
		class, text := "line-grey", "soft"
		if m.Alarm {
			class, text = "line-red", "alarm"
		}
		at := x(m.At)
		c.Put(`<g><title>%s</title>`, html.EscapeString(m.Name))
		c.Upright(at, top-4, bottom, class)
		c.Put(`</g>`)
		if need := float64(len(m.Name))*6.2 + 14; at+need <= room {
			c.Text(at+2, float64(top-26), text, "▾ "+m.Name)
			room = at - 2
		} else if at-need >= 0 && at <= room-2 && i == len(all)-1 {
			c.Text(at+4, float64(top-26), text+" end", m.Name+" ▾")
			room = at - need
		}
	}
}
