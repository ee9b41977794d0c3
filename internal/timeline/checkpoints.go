package timeline

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"time"

	"github.com/gocolo/lockstep/event"
)

// A Checkpoint has the times of one checkpoint for the pictures. All but At, the time of the
// request, are spans from At.
type Checkpoint struct {
	At       time.Time
	Epoch    uint64
	Cause    event.Cause // empty: not known, on a secondary
	PauseAt  time.Duration
	Pause    time.Duration // how long the guest stood still
	Stopped  time.Duration // the same as its VM measures it; 0: it does not
	Transfer time.Duration // to vmstate-received
	Commit   time.Duration // from there to vmstate-loaded
	Pages    uint64
	Bytes    uint64
}

// whole returns how long a checkpoint takes, in milliseconds.
func (c Checkpoint) whole() float64 { return ms(c.Transfer + c.Commit) }

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", ms(d)) }

// causes give each checkpoint its colour, and say in words why it was made.
var causes = []struct {
	cause event.Cause
	Key
}{
	{event.CauseTimer, Key{"blue", "timer"}},
	{event.CauseDivergence, Key{"red", "divergence"}},
	{event.CauseRequest, Key{"purple", "request"}},
	{event.CauseLimit, Key{"yellow", "a full buffer"}},
	{event.CausePace, Key{"cyan", "pace"}},
	{event.CauseInitial, Key{"green", "initial"}},
	{"", Key{"grey", "cause not known here"}},
}

// key returns the colour of a cause; a cause that has none has that of an unknown
// one.
func key(c event.Cause) Key {
	for _, k := range causes {
		if k.cause == c {
			return k.Key
		}
	}
	return causes[len(causes)-1].Key
}

// CauseKeys returns the colours of those causes that occur.
func CauseKeys(all []Checkpoint) (keys []Key) {
	for _, k := range causes {
		if slices.ContainsFunc(all, func(c Checkpoint) bool { return key(c.Cause) == k.Key }) {
			keys = append(keys, k.Key)
		}
	}
	return keys
}

// A slot is some checkpoints that are drawn as one bar: the longest of them, and
// how many they are.
type slot struct {
	Checkpoint
	n int
}

// slots makes one bar of checkpoints that would be less than so many pixels
// apart.
func slots(all []Checkpoint, x func(time.Time) float64, apart float64) (bars []slot) {
	last := -1e9
	for _, c := range all {
		if at := x(c.At); at-last >= apart {
			bars = append(bars, slot{c, 1})
			last = at
			continue
		}
		b := &bars[len(bars)-1]
		b.n++
		if c.whole() > b.whole() {
			b.Checkpoint = c
		}
	}
	return bars
}

// BarWidth returns how wide the bars of checkpoints are that are so far apart on
// average.
func (c *Canvas) BarWidth(all []Checkpoint, x func(time.Time) float64) float64 {
	if len(all) < 2 {
		return 12
	}
	each := (x(all[len(all)-1].At) - x(all[0].At)) / float64(len(all)-1)
	return min(max(each*0.7, 0.4), 24)
}

// Checkpoints draws the spans of each checkpoint, upwards from its request. Those
// that are less than apart pixels from one another are one bar.
func (c *Canvas) Checkpoints(all []Checkpoint, x func(time.Time) float64, top, height int, apart float64) {
	bars := slots(all, x, apart)
	lengths := make([]float64, len(bars))
	for i, b := range bars {
		lengths[i] = b.whole()
	}
	// A few that took much longer must not flatten the others.
	most := min(Quantile(lengths, 1), 1.8*Quantile(lengths, 0.9))
	y := c.Panel(top, height, "Each checkpoint, ms from its request", most)
	width := c.BarWidth(all, x)
	if apart > 0 && len(all) > len(bars) {
		width = apart * 0.75
	}
	free := 0.0 // where there is room for a number again
	for _, b := range bars {
		at, k := x(b.At), key(b.Cause)
		c.Put(`<g><title>%s</title>`, html.EscapeString(b.title(k.Name)))
		span := func(from, to time.Duration, w float64, class string) {
			lo, hi := min(ms(from), y.To), min(ms(to), y.To)
			c.Rect(at+(width-w)/2, y.At(hi), w, y.At(lo)-y.At(hi), class)
		}
		span(0, b.Transfer, width, k.Class)
		span(b.Transfer, b.Transfer+b.Commit, width, k.Class+" commit")
		span(b.PauseAt, b.PauseAt+b.Pause, max(width*0.4, 0.4), "pause")
		if b.whole() > y.To && at >= free {
			free = at + 30
			c.Text(at+width/2, float64(top)+10, "mid small", fmt.Sprintf("▲%.0f", b.whole()))
		}
		c.Put(`</g>`)
	}
}

func (b slot) title(cause string) string {
	var s strings.Builder
	if b.n > 1 {
		fmt.Fprintf(&s, "%d checkpoints, the longest is ", b.n)
	}
	fmt.Fprintf(&s, "checkpoint %d (%s): paused %s ms", b.Epoch, cause, millis(b.Pause))
	if b.Stopped > 0 {
		fmt.Fprintf(&s, " (stood still %s ms)", millis(b.Stopped))
	}
	fmt.Fprintf(&s, ", transfer %s ms, commit %s ms, %d pages, %d bytes", millis(b.Transfer), millis(b.Commit), b.Pages, b.Bytes)
	return s.String()
}

// SpanKeys explain the parts of a bar.
func SpanKeys() []Key {
	return []Key{{"grey", "transfer"}, {"grey commit", "commit"}, {"pause", "primary paused"}}
}

// Bars draws one figure of each checkpoint.
func (c *Canvas) Bars(all []Checkpoint, x func(time.Time) float64, top, height int, name, class string, value func(Checkpoint) float64) {
	values := make([]float64, len(all))
	for i, p := range all {
		values[i] = value(p)
	}
	y := c.Panel(top, height, name, Quantile(values, 1))
	width := c.BarWidth(all, x)
	for i, p := range all {
		v := y.At(values[i])
		c.Rect(x(p.At), v, width, y.Lo-v, class)
	}
}

// Quantile returns the value that a share of the values, 0 to 1, is at most; 0 of
// none.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
