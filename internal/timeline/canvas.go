// Package timeline draws what happened to a protected guest, as SVG: panels one
// above the other that share an axis of time, a checkpoint a bar, coloured by its
// cause. It writes the picture of a run to a file, and that of the present moment
// into a page.
package timeline

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Style says how the classes of the picture look, in light and in dark. It is for the style
// element of the picture, or of the page that has it inside.
const Style = `.tl{font:12px system-ui,"Helvetica Neue",Arial,sans-serif;--tl-ink:#222;--tl-soft:#5a5a5a;--tl-grid:#ddd;--tl-paper:#fff;--tl-alarm:#c03040;--tl-good:#1a6b28}
.tl text{fill:var(--tl-ink)}.tl .soft{fill:var(--tl-soft)}.tl .paper{fill:var(--tl-paper)}.tl .alarm{fill:var(--tl-alarm)}.tl .good{fill:var(--tl-good)}
.tl .grid{stroke:var(--tl-grid)}.tl .tick{stroke:var(--tl-soft)}.tl .name{font-weight:600}.tl .title{font-size:20px;font-weight:600}.tl .end{text-anchor:end}.tl .mid{text-anchor:middle}.tl .small{font-size:9px}
.tl .pause{fill:var(--tl-ink)}.tl .commit{fill-opacity:.45}.tl .blue{fill:#4477aa}.tl .cyan{fill:#66ccee}.tl .green{fill:#228833}.tl .yellow{fill:#ccbb44}.tl .red{fill:#ee6677}.tl .purple{fill:#aa3377}.tl .grey{fill:#888}
.tl .line-grey{stroke:#888;stroke-width:1.5}.tl .line-red{stroke:#ee6677;stroke-width:1.5}.tl .line-green{stroke:#228833;stroke-width:1.5}.tl .veil{fill-opacity:.18}
@media (prefers-color-scheme:dark){.tl{--tl-ink:#e6e6e6;--tl-soft:#a8a8a8;--tl-grid:#3a3f45;--tl-paper:#15181c;--tl-alarm:#ff8a95;--tl-good:#7fd08d}.tl .blue{fill:#6f9fd0}.tl .green{fill:#4caf5f}.tl .purple{fill:#cf6aa5}}
`

// A Canvas is a picture being drawn. Left and Right are where its panels begin and
// end, in pixels.
type Canvas struct {
	Width, Left, Right int

	b bytes.Buffer
}

// Put adds an element.
func (c *Canvas) Put(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

// Text adds a text of some classes.
func (c *Canvas) Text(x, y float64, class, s string) {
	c.Put(`<text x="%s" y="%s" class="%s">%s</text>`, Px(x), Px(y), class, html.EscapeString(s))
}

// Rect adds a rectangle, unless it has no area.
func (c *Canvas) Rect(x, y, w, h float64, class string) {
	if w > 0 && h > 0 {
		c.Put(`<rect x="%s" y="%s" width="%s" height="%s" class="%s"/>`, Px(x), Px(y), Px(w), Px(h), class)
	}
}

// Upright adds a line from top to bottom.
func (c *Canvas) Upright(x float64, top, bottom int, class string) {
	c.Put(`<line x1="%s" x2="%s" y1="%d" y2="%d" class="%s"/>`, Px(x), Px(x), top, bottom, class)
}

// WriteDocument writes the picture as a file of its own.
func (c *Canvas) WriteDocument(w io.Writer, height int) error {
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" class="tl">
<style>%s</style>
<rect width="100%%" height="100%%" class="paper"/>
%s</svg>
`, c.Width, height, c.Width, height, Style, c.b.Bytes())
	return err
}

// Element returns the picture as an element of a page that has Style. A screen reader
// speaks the name.
func (c *Canvas) Element(height int, name string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" class="tl" role="img" aria-label="%s">
%s</svg>`, c.Width, height, c.Width, height, html.EscapeString(name), c.b.Bytes())
}

// An Axis maps values to pixels.
type Axis struct{ From, To, Lo, Hi float64 }

// At returns the pixel of a value.
func (a Axis) At(v float64) float64 {
	if a.To == a.From {
		return a.Lo
	}
	return a.Lo + (v-a.From)/(a.To-a.From)*(a.Hi-a.Lo)
}

// step returns a round distance between ticks, for about n of them.
func (a Axis) step(n int) float64 {
	raw := (a.To - a.From) / float64(n)
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

// Ticks calls fn for each round value of the axis, about n of them.
func (a Axis) Ticks(n int, fn func(v float64, label string)) {
	step := a.step(n)
	digits := max(0, int(-math.Floor(math.Log10(step)+1e-9)))
	for i := math.Ceil(a.From/step - 1e-9); i*step <= a.To+step*1e-6; i++ {
		v := i*step + 0 // never -0
		fn(v, fmt.Sprintf("%.*f", digits, v))
	}
}

// Px formats a coordinate.
func Px(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

// Grid draws lines at round values of a vertical axis, and what they are.
func (c *Canvas) Grid(y Axis, n int) {
	y.Ticks(n, func(v float64, label string) {
		c.Put(`<line x1="%d" x2="%d" y1="%s" y2="%s" class="grid"/>`, c.Left, c.Right, Px(y.At(v)), Px(y.At(v)))
		c.Text(float64(c.Left-8), y.At(v)+4, "soft end", label)
	})
}

// Panel draws the frame of a panel and returns its vertical axis, from 0 to at
// least most; where most is 0, and there is nothing to see, to 1.
func (c *Canvas) Panel(top, height int, name string, most float64) Axis {
	if most <= 0 {
		most = 1
	}
	y := Axis{From: 0, To: most, Lo: float64(top + height), Hi: float64(top)}
	step := y.step(4)
	y.To = math.Ceil(y.To/step-1e-9) * step
	c.Text(float64(c.Left), float64(top-10), "name", name)
	c.Grid(y, 4)
	return y
}

// Times labels the axis of time under a panel.
func (c *Canvas) Times(x Axis, bottom int, unit string) {
	x.Ticks(max(2, min(12, (c.Right-c.Left)/70)), func(v float64, label string) {
		c.Upright(x.At(v), bottom, bottom+5, "tick")
		c.Text(x.At(v), float64(bottom+19), "soft mid", label)
	})
	c.Text(float64(c.Left+c.Right)/2, float64(bottom+37), "soft mid", unit)
}

// A Key is a colour of the picture and what it stands for.
type Key struct{ Class, Name string }

func (k Key) width() float64 { return float64(len(k.Name))*6.9 + 26 }

// Legend explains colours, at the right end of a panel's title line.
func (c *Canvas) Legend(top int, keys ...Key) {
	x := float64(c.Right)
	for i := len(keys) - 1; i >= 0; i-- {
		x -= keys[i].width()
		c.key(x, float64(top-20), keys[i])
	}
}

// Keys explains colours in lines of their own, and returns where the next begins.
func (c *Canvas) Keys(top int, keys ...Key) int {
	x := float64(c.Left)
	for i, k := range keys {
		if i > 0 && x+k.width() > float64(c.Width) {
			x, top = float64(c.Left), top+18
		}
		c.key(x, float64(top), k)
		x += k.width()
	}
	return top + 18
}

func (c *Canvas) key(x, y float64, k Key) {
	c.Rect(x, y, 12, 12, k.Class)
	c.Text(x+17, y+10, "soft", k.Name)
}
